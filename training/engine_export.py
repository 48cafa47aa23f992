"""A bundle -> an exported engine: encoder up to the site, SAE and selection as one ONNX graph, with golden codes.

The graph reads uint8 pixels and gives what `engine_onnx.py` names. Nothing is published whose codes are not torch's
within the tolerance of docs/design.md, section 3, or, with 8-bit weights, without the overlap that was measured.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, assert_never

import onnx
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from phosphene.artefact_writing import emptied_partial, seal
from phosphene.bundle import Bundle, load_bundle
from phosphene.encoder import Encoder
from phosphene.engine import EngineName, Want
from phosphene.engine_artefact import (
    GRAPH_NAME,
    IMAGE_TOLERANCE,
    TOKEN_TOLERANCE,
    Golden,
    Likeness,
    golden_pixels,
    measure,
    open_exported,
    save_golden,
)
from phosphene.engine_onnx import CODE_OUTPUTS, INPUT, RESIDUALS_OUTPUT, OnnxGraph, quantise
from phosphene.engine_torch import TorchEngine
from phosphene.errors import NumericError
from phosphene.manifest import Manifest
from phosphene.selection import JumpReLU, Selection, TopK
from training.places import refuse_nameless, refuse_taken

__all__ = ["EngineExport", "Selector", "export_engine", "write_graph"]

_OPSET = 20
_OVERLAP_SLACK = 0.1  # other CPUs round 8-bit products otherwise
_FLOAT_GRAPH = "float32.onnx"


@dataclass(frozen=True, kw_only=True)
class EngineExport:
    """What `export_engine` ends with."""

    path: Path
    """Where the engine lies."""
    manifest: Manifest
    """Its manifest."""
    is_new: bool
    """False where it had been finished before."""


def export_engine(bundle_path: Path, out: Path, *, is_int8: bool = False) -> EngineExport:
    """Publish a bundle's engine, or find it finished.

    Args:
        bundle_path: the bundle.
        out: where the engine goes.
        is_int8: whether to give it 8-bit weights: faster on the CPU, and with other codes.

    Raises:
        SettingError: `out` has no name.
        ArtefactError: the bundle cannot be read, or `out` holds something else.
        EncoderError: its encoder cannot be loaded.
        NumericError: the graph's codes are not torch's, or nothing would show it: no neuron fires on the golden images.
    """
    refuse_nameless(out)
    refuse_taken(out, "engine")
    name = EngineName.ONNXRUNTIME_INT8 if is_int8 else EngineName.ONNXRUNTIME
    bundle = load_bundle(bundle_path)
    if out.exists():
        return EngineExport(path=out, manifest=open_exported(out, bundle, expected=name), is_new=False)
    engine = TorchEngine(bundle)
    with emptied_partial(out) as partial:
        golden = _golden(engine)
        save_golden(partial, golden)
        _write_graphs(partial, engine, is_int8=is_int8)
        graph = OnnxGraph(partial, neuron_count=bundle.sae.neuron_count, thread_count=torch.get_num_threads())
        likeness = measure(golden, graph.run(golden.pixels, with_residuals=False)[0], bundle)
        config = {
            "engine": name.value,
            "opset": _OPSET,
            "golden": {"image_count": len(golden.pixels)},
            "measured": asdict(likeness),
            "tolerance": _tolerance(likeness, name),
        }
        inputs = {"bundle": bundle.id, "code_id": bundle.code_id}
        manifest = seal(partial, out, kind="engine", inputs=inputs, config=config)
    return EngineExport(path=out, manifest=manifest, is_new=True)


def write_graph(module: nn.Module, example: Tensor, path: Path, *, input_name: str, output_names: list[str]) -> None:
    """Export a module whose first dimension is the batch; the weights go beside the graph.

    Args:
        module: takes one tensor, gives a tuple of tensors.
        example: an input with a batch of at least 2.
        path: the graph's file.
        input_name: of the input in the graph.
        output_names: of the outputs, in order.
    """
    with _quiet(), torch.inference_mode():
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("images", min=1, max=1 << 16)},),
            input_names=[input_name],
            output_names=output_names,
            opset_version=_OPSET,
            verbose=False,
        )
    assert program is not None, "only the retired exporter writes a file itself"
    program.save(path, external_data=True)
    model = onnx.load(path, load_external_data=False)
    _forget_places(model)
    onnx.save(model, path)


class Selector(nn.Module):
    """`selection.select` as a graph: ties at the last place go to the lower neuron, as ONNX defines TopK."""

    def __init__(self, selection: Selection, *, neuron_count: int, limit: int) -> None:
        """Keep the rule.

        Args:
            selection: the rule.
            neuron_count: neurons of the SAE.
            limit: `token_code_limit`.
        """
        super().__init__()
        self._threshold: Tensor | None
        match selection:
            case TopK(k=k):
                self._threshold, self._width = None, min(k, neuron_count)
            case JumpReLU(threshold=threshold):
                self._threshold, self._width = threshold.detach().clamp_min(0), min(limit, neuron_count)
            case _:
                assert_never(selection)

    def forward(
        self, pre_activations: Float[Tensor, "tokens neurons"]
    ) -> tuple[Float[Tensor, "tokens width"], Int[Tensor, "tokens width"], Int[Tensor, " tokens"]]:
        """Give values, neuron ids and cut counts."""
        if self._threshold is None:
            rectified = pre_activations.clamp_min(0)
        else:
            rectified = torch.where(pre_activations > self._threshold, pre_activations, 0.0)
        values, neuron_ids = torch.topk(rectified, self._width, dim=-1)
        kept = (values > 0).sum(-1)
        cut_counts = torch.zeros_like(kept) if self._threshold is None else (rectified > 0).sum(-1) - kept
        return values, torch.where(values > 0, neuron_ids, 0), cut_counts


class _Engine(nn.Module):
    """Pixels -> what `engine_onnx.py` names, in that order."""

    def __init__(self, encoder: Encoder, bundle: Bundle) -> None:
        super().__init__()
        self._encoder, self._site, self._sae = encoder, bundle.site, bundle.sae
        self._select = Selector(
            bundle.sae.selection, neuron_count=bundle.sae.neuron_count, limit=bundle.limits.token_code_limit
        )

    def forward(
        self, pixels: UInt8[Tensor, "images 3 height width"]
    ) -> tuple[
        Float[Tensor, "images tokens slots"],
        Int[Tensor, "images tokens slots"],
        Int[Tensor, "images tokens"],
        Bool[Tensor, " images"],
        Float[Tensor, "images tokens residual"],
    ]:
        residuals = self._encoder.residuals(pixels, self._site)
        token_count, width = residuals.shape[1:]
        values, neuron_ids, cut_counts = self._select(self._sae.pre_activations(residuals.reshape(-1, width)))
        return (
            values.reshape(-1, token_count, values.shape[-1]),
            neuron_ids.reshape(-1, token_count, values.shape[-1]),
            cut_counts.reshape(-1, token_count),
            residuals.isfinite().flatten(1).all(dim=1),
            residuals,
        )


def _golden(engine: TorchEngine) -> Golden:
    pixels = golden_pixels(engine.bundle.preprocessing)
    codes = engine.run(pixels, Want(token_codes=True)).token_codes
    assert codes is not None, "token codes were asked for"
    if not codes.values.any():
        raise NumericError(
            "no neuron fires on the golden images, so that no graph's codes can be told from torch's; nothing is "
            "published: serve this bundle with torch"
        )
    return Golden(pixels=pixels, codes=codes)


def _write_graphs(folder: Path, engine: TorchEngine, *, is_int8: bool) -> None:
    size = engine.bundle.preprocessing.size
    example = torch.zeros((2, 3, size.height, size.width), dtype=torch.uint8)
    path = folder / (_FLOAT_GRAPH if is_int8 else GRAPH_NAME)
    names = [*CODE_OUTPUTS, RESIDUALS_OUTPUT]
    write_graph(_Engine(engine.encoder, engine.bundle), example, path, input_name=INPUT, output_names=names)
    if is_int8:
        quantise(path, folder / GRAPH_NAME)
        for file in (path, path.with_name(path.name + ".data")):
            file.unlink()


def _tolerance(likeness: Likeness, name: EngineName) -> dict[str, Any]:
    if name is EngineName.ONNXRUNTIME_INT8:
        if likeness.top10_overlap <= _OVERLAP_SLACK:
            raise NumericError(
                f"with 8-bit weights {likeness.top10_overlap:.2g} of an image's ten strongest neurons stay among its "
                f"strongest, the least is more than {_OVERLAP_SLACK:g}; nothing is published: leave out --int8"
            )
        return {"top10_overlap": round(likeness.top10_overlap - _OVERLAP_SLACK, 3)}
    if not likeness.is_float32:
        raise NumericError(f"the graph {likeness}; nothing is published: serve this bundle with torch")
    return {"image_difference": IMAGE_TOLERANCE, "token_difference": TOKEN_TOLERANCE}


def _forget_places(model: onnx.ModelProto) -> None:
    """Drop where in whose source tree each node came from: artefacts hold no paths."""
    graph: Any = model.graph
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    inner = (part for function in model.functions for part in (function, *function.node, *function.value_info))
    part: Any
    for part in (model, graph, *graph.node, *values, *inner):
        part.doc_string = ""
        del part.metadata_props[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on its own insides off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
