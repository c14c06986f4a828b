"""Small files by which transformers, Optimum, sentence-transformers and fastembed open a bundle's folder.

tokenizer_config.json               transformers: take tokenizer.json as it is, cut at the model's limit
special_tokens_map.json             fastembed: which tokens are special
onnx/last_hidden_state.onnx         the encoder without heads; its weights are those of model.onnx, in the same file
onnx/last_hidden_state_int8.onnx    the same of model_int8.onnx
openvino/openvino_model.xml         the same of openvino/model_int8.xml, by the name that Optimum looks for
modules.json, 1_Pooling/config.json, sentence_bert_config.json
                                    sentence-transformers: which graph, how to pool, whether to normalise
config_sentence_transformers.json   the checkpoint's prompts, where it has some

The runtime reads the last alone. A reranker's bundle has the first two.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.etree import ElementTree

import onnx_ir as ir

from m3_export.checkpoint.added_tokens import TOKENIZER_CONFIG_NAME
from m3_export.checkpoint.tokenizer import SPECIAL_TOKENS_NAME, CheckpointTokenizer
from m3_export.graph import passes
from m3_export.graph.passes.last_hidden_state import LAST_HIDDEN_STATE
from m3_export.options import VariantName
from m3_export.quantize.variants import FILES, OPENVINO_WEIGHTS
from m3_models.checkpoint_files import write_json, write_sentence_transformers
from m3_runtime.bundle.manifest import ModelInfo, Pooling
from m3_runtime.bundle.prompts import PROMPTS_NAME, Prompts

ENCODERS: Mapping[VariantName, str] = {
    VariantName.ONNX_FP32: f"onnx/{LAST_HIDDEN_STATE}.onnx",
    VariantName.ONNX_INT8: f"onnx/{LAST_HIDDEN_STATE}_int8.onnx",
}
_POOLING_FLAGS: Mapping[Pooling, str] = {
    Pooling.CLS: "pooling_mode_cls_token",
    Pooling.MEAN: "pooling_mode_mean_tokens",
    Pooling.LAST_TOKEN: "pooling_mode_lasttoken",
}


def write_library_files(folder: Path, model: ModelInfo, tokenizer: CheckpointTokenizer, prompts: Prompts) -> None:
    """Write them for the variants that `folder` holds, all of which have been written."""
    write_json(folder / TOKENIZER_CONFIG_NAME, tokenizer.config(model.geometry.max_tokens))
    write_json(folder / SPECIAL_TOKENS_NAME, tokenizer.special_tokens())
    if model.is_reranker:
        return  # transformers' config.json, which says so, and the graph's `logits` are all that others look for
    if prompts.prompts:
        write_json(folder / PROMPTS_NAME, prompts.to_json())
    written = [name for name in ENCODERS if (folder / FILES[name]).is_file()]
    for name in written:  # their weights stay where they are: both graphs refer to one data file beside them
        ir.save(passes.encoder_alone(ir.load(folder / FILES[name])), folder / ENCODERS[name])
    if (graph := folder / FILES[VariantName.OPENVINO_INT8]).is_file():
        _write_openvino_encoder(graph, (folder / OPENVINO_WEIGHTS).with_suffix(".xml"))
    if written:
        pooling = {flag: one is model.pooling for one, flag in _POOLING_FLAGS.items()}
        # model_args: the name that every release with ONNX reads
        settings = {"max_seq_length": model.geometry.max_tokens, "model_args": {"file_name": ENCODERS[written[0]]}}
        write_sentence_transformers(folder, model.geometry.hidden_size, pooling, settings, normalize=model.normalize)


def _write_openvino_encoder(graph: Path, encoder: Path) -> None:
    """The layers that lead to the last hidden state, as they are: their weights keep their places in the one file."""
    tree = ElementTree.parse(graph)  # noqa: S314 - our own file
    layers, edges = (tree.getroot()[index] for index in (0, 1))
    last = next(layer for layer in layers if layer.get("name") == LAST_HIDDEN_STATE)
    needed = _leading_to(last.attrib["id"], edges)
    for layer in [layer for layer in layers if layer.get("id") not in needed]:
        layers.remove(layer)
    for edge in [edge for edge in edges if edge.get("to-layer") not in needed]:
        edges.remove(edge)
    port = last.find("output/port")
    assert port is not None
    port.set("names", LAST_HIDDEN_STATE)
    end = str(1 + max(int(layer.attrib["id"]) for layer in layers))
    result = ElementTree.SubElement(layers, "layer", id=end, name=f"{LAST_HIDDEN_STATE}/sink_port_0", type="Result")
    result.set("version", "opset1")
    ElementTree.SubElement(ElementTree.SubElement(result, "input"), "port", id="0", precision="FP32").extend(port)
    ends = {"from-layer": last.attrib["id"], "from-port": port.attrib["id"], "to-layer": end, "to-port": "0"}
    ElementTree.SubElement(edges, "edge", ends)
    tree.write(encoder, encoding="utf-8", xml_declaration=True)


def _leading_to(layer: str, edges: Iterable[ElementTree.Element]) -> set[str]:
    """Ids of a layer and of all that it reads, directly or not."""
    reads = defaultdict(list)
    for edge in edges:
        reads[edge.get("to-layer")].append(edge.attrib["from-layer"])
    found, waiting = set[str](), [layer]
    while waiting:
        if (one := waiting.pop()) not in found:
            found.add(one)
            waiting += reads[one]
    return found
