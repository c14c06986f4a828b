"""Drop what the exporter notes about itself: source lines and paths of the exporting machine."""

import onnx_ir as ir


class StripMetadata(ir.passes.InPlacePass):
    """Clears doc strings and metadata of every node and value, so that bytes depend on the weights alone."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """See `onnx_ir.passes.InPlacePass`."""
        model.doc_string = None
        model.metadata_props.clear()
        model.graph.metadata_props.clear()
        model.graph.doc_string = None
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            node.doc_string = None
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*model.graph.inputs, *model.graph.initializers.values()):
            value.metadata_props.clear()
        return ir.passes.PassResult(model, modified=True)
