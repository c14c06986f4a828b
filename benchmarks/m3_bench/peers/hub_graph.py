"""The graph that bge-m3-lite starts from, of any checkpoint: what BAAI's hub page has as `onnx/model.onnx`.

That file is transformers' encoder through PyTorch's TorchScript exporter at opset 11, its output called
`token_embeddings`. So is this one; bge-m3-lite's own tools do the rest. A program of its own, because
it takes several times the weights in memory.
"""

import json
import logging
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import onnx
import torch
from torch import nn

from m3_bench.peers.sentencepiece_file import spm_bytes
from m3_export.checkpoint.folder import Checkpoint
from m3_export.checkpoint.heads import COLBERT_FILE, SPARSE_FILE
from m3_export.verify.reference import encoder_of

OPSET = 11


class TokenEmbeddings(nn.Module):
    """The encoder with its one output; the names of the graph's nodes begin with the attribute's."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.auto_model = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, T), (B, T) → (B, T, H)."""
        hidden: torch.Tensor = self.auto_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden


def write_hub_graph(checkpoint: Path, folder: Path) -> None:
    """Write model.onnx and model.onnx_data into an existing folder.

    Raises:
        M3Error: the checkpoint is not what it must be.
    """
    encoder = encoder_of(Checkpoint.open(checkpoint))
    encoder.set_attn_implementation("eager")  # the pattern that ONNX Runtime's fusion, and so bge-m3-lite's, looks for
    ids = torch.tensor([[0, 5, 6, 7, 2], [0, 5, 2, 1, 1]])
    axes = {0: "batch", 1: "tokens"}
    with tempfile.TemporaryDirectory(dir=folder) as parts, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript's exporter calls itself old
        torch.onnx.export(
            TokenEmbeddings(encoder),
            (ids, (ids != 1).long()),
            str(Path(parts) / "model.onnx"),
            dynamo=False,
            opset_version=OPSET,
            input_names=["input_ids", "attention_mask"],
            output_names=["token_embeddings"],
            dynamic_axes={"input_ids": axes, "attention_mask": axes, "token_embeddings": axes},
        )
        del encoder
        # over 2 GB the exporter writes a file for each tensor
        onnx.save_model(
            onnx.load(str(Path(parts) / "model.onnx")),
            str(folder / "model.onnx"),
            save_as_external_data=True,
            all_tensors_to_one_file=True,
            location="model.onnx_data",
        )


def write_lite_inputs(checkpoint: str, folder: str) -> None:
    """Write everything bge-m3-lite needs into an existing folder: graph, vocabulary, heads."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    source, target = Path(checkpoint), Path(folder)
    write_hub_graph(source, target)
    (target / "sentencepiece.bpe.model").write_bytes(spm_bytes(source / "tokenizer.json"))
    for name in (SPARSE_FILE, COLBERT_FILE):
        shutil.copyfile(source / name, target / name)


if __name__ == "__main__":
    write_lite_inputs(**json.loads(sys.argv[1]))
