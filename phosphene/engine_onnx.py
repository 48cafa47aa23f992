"""An exported engine in ONNX Runtime: pixels -> token codes of one bundle, without torch's encoder.

The only user of onnxruntime. The graph is one piece up to the token codes, so nothing resumes behind the site: scores
and embeddings are torch's. ONNX's TopK gives ties to the lower index, as `selection.py` does.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from jaxtyping import Float32, UInt8

from phosphene.bundle import Bundle
from phosphene.codes import TokenCodes, image_codes
from phosphene.engine import EngineName, EngineRequest, EngineRow, Want, open_device
from phosphene.engine_artefact import GRAPH_NAME, check_golden, load_golden, measure, open_exported
from phosphene.engine_device import used_memory_bytes
from phosphene.errors import (
    ArtefactDamaged,
    DeviceFailed,
    DeviceOutOfMemory,
    NumericError,
    SettingError,
    Unanswerable,
)
from phosphene.fidelity import Fidelity, fidelities

__all__ = ["CODE_OUTPUTS", "INPUT", "RESIDUALS_OUTPUT", "OnnxEngine", "OnnxGraph", "open_onnx_engine", "quantise"]

INPUT = "pixels"
CODE_OUTPUTS = ("values", "neuron_ids", "cut_counts", "is_finite")
RESIDUALS_OUTPUT = "residuals"

_DENSE_LIMIT_VALUES = 1 << 26  # 256 MiB of float32 pre-activations at a time


def open_onnx_engine(
    path: Path,
    bundle: Bundle,
    *,
    expected: EngineName = EngineName.ONNXRUNTIME,
    device: str = "cpu",
    thread_count: int | None = None,
    may_spin: bool = True,
    on_stage: Callable[[str, float], None] | None = None,
) -> OnnxEngine:
    """Open an exported engine and compare its codes with the golden ones.

    Args:
        path: the artefact's folder.
        bundle: the bundle that it was exported from.
        expected: which engine the artefact must be.
        device: `cpu`, `cuda` or `cuda:N`.
        thread_count: CPU threads of the session; None lets ONNX Runtime choose.
        may_spin: whether idle threads burn CPU for lower latency; False where others need it.
        on_stage: as for `OnnxEngine`.

    Raises:
        ArtefactError: missing, damaged, of another bundle or precision, or with other codes than promised.
        SettingError: no such device, or this build of ONNX Runtime does not run on it.
    """
    manifest = open_exported(path, bundle, expected=expected)
    graph = OnnxGraph(
        path, neuron_count=bundle.sae.neuron_count, device=device, thread_count=thread_count, may_spin=may_spin
    )
    golden = load_golden(path)
    found, _, _ = graph.run(golden.pixels, with_residuals=False)
    check_golden(measure(golden, found, bundle), manifest.config, artefact=path.name)
    return OnnxEngine(graph, bundle, name=expected, on_stage=on_stage)


class OnnxEngine:
    """An `Engine` over the one bundle that the graph was exported from."""

    def __init__(
        self,
        graph: OnnxGraph,
        bundle: Bundle,
        *,
        name: EngineName,
        on_stage: Callable[[str, float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Join a graph with its bundle; `open_onnx_engine` has checked that they belong together.

        Args:
            graph: gives token codes.
            bundle: says how they become image codes.
            name: what the graph is.
            on_stage: told `encode` with the seconds that a batch took; the graph does not tell its SAE apart.
            clock: monotonic seconds.
        """
        self.bundle = bundle
        self._graph = graph
        self._name = name
        self._on_stage = on_stage
        self._clock = clock

    @property
    def name(self) -> EngineName:
        """What computes the codes."""
        return self._name

    @property
    def device_memory_bytes(self) -> int:
        """Memory of the graph's device that is in use."""
        return used_memory_bytes(self._graph.device)

    def can(self, want: Want) -> bool:
        """Everything but what lies behind the site."""
        return not want.runs_to_end

    def cost(self, request: EngineRequest) -> float:
        """Price one image: the blocks of the graph."""
        block = self.bundle.site.block
        return float(self.bundle.encoder_spec.block_count if block is None else block + 1)

    def run_rows(
        self, pixels: UInt8[np.ndarray, "images 3 height width"], requests: Sequence[EngineRequest]
    ) -> list[EngineRow]:
        """Run a batch; see `Engine.run_rows`."""
        if not all(self.can(request.want) for request in requests):
            raise Unanswerable(
                f"scores and embeddings lie behind {self.bundle.site}, where the exported graph ends; serve bundle "
                f"{self.bundle.path.name!r} with torch for them",
                subject=f"engine {self._name.value}",
            )
        start_s = self._clock()
        with_residuals = any(request.want.fidelity or request.want.residuals for request in requests)
        codes, is_finite, residuals = self._graph.run(pixels, with_residuals=with_residuals)
        if self._on_stage is not None:
            self._on_stage("encode", self._clock() - start_s)
        if not is_finite.all():
            raise NumericError(
                f"encoder {self.bundle.encoder_spec.model!r} gave NaN or infinity at {self.bundle.site}; its weights or"
                " the device are at fault, not the image"
            )
        return self._rows(codes, residuals, [request.want for request in requests])

    def launch(
        self, pixels: UInt8[np.ndarray, "images 3 height width"], requests: Sequence[EngineRequest]
    ) -> Callable[[], list[EngineRow]]:
        """Run a batch now, whatever the device: ONNX Runtime answers when it is done."""
        rows = self.run_rows(pixels, requests)
        return lambda: rows

    def _rows(
        self, codes: TokenCodes, residuals: Float32[np.ndarray, "images tokens residual"] | None, wants: Sequence[Want]
    ) -> list[EngineRow]:
        values, neuron_ids = codes.values.numpy(), codes.neuron_ids.numpy()
        measured = [place for place, want in enumerate(wants) if want.fidelity]
        fidelity: Iterator[Fidelity] = iter(())
        if residuals is not None and measured:
            some = TokenCodes(*(part[measured] for part in codes))
            fidelity = iter(fidelities(self.bundle.sae, torch.from_numpy(residuals[measured]), some))
        return [
            EngineRow(
                code=code,
                token_values=values[place] if want.token_codes else None,
                token_neuron_ids=neuron_ids[place] if want.token_codes else None,
                fidelity=next(fidelity) if want.fidelity else None,
                residual=residuals[place].mean(axis=0) if want.residuals and residuals is not None else None,
            )
            for place, (code, want) in enumerate(
                zip(image_codes(codes, limit=self.bundle.limits.image_code_limit), wants, strict=True)
            )
        ]


class OnnxGraph:
    """A session of ONNX Runtime over an exported graph; not thread-safe: one thread drives it."""

    def __init__(
        self,
        folder: Path,
        *,
        neuron_count: int,
        device: str = "cpu",
        thread_count: int | None = None,
        may_spin: bool = True,
    ) -> None:
        """Open the graph; the caller has checked the digests.

        Args:
            folder: where the graph and its weights lie.
            neuron_count: neurons of the SAE, which decides how many images run at a time.
            device: `cpu`, `cuda` or `cuda:N`.
            thread_count: CPU threads; None lets ONNX Runtime choose.
            may_spin: whether idle threads burn CPU for lower latency.

        Raises:
            ArtefactDamaged: ONNX Runtime cannot read the graph, or it is not one of ours.
            SettingError: no such device, or this build of ONNX Runtime does not run on it.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = thread_count or 0
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if may_spin else "0")
        self.device = open_device(device)
        self._device_id = _cuda_device(device)
        try:
            self._session = onnxruntime.InferenceSession(
                str(folder / GRAPH_NAME), options, providers=_providers(self._device_id)
            )
            outputs = {output.name: output.shape for output in self._session.get_outputs()}
            token_count = int(outputs[CODE_OUTPUTS[0]][1])
        except Exception as cause:  # a graph that is none fails in many ways that share no base class
            raise ArtefactDamaged(
                f"ONNX Runtime cannot read {GRAPH_NAME} of engine {folder.name!r} ({_first_line(cause)}); export it"
                " again"
            ) from cause
        if self._device_id is not None:
            _refuse_other_provider(self._session.get_providers(), device)
        if set(outputs) != {*CODE_OUTPUTS, RESIDUALS_OUTPUT}:
            raise ArtefactDamaged(
                f"{GRAPH_NAME} of engine {folder.name!r} gives {sorted(outputs)}; due are "
                f"{sorted({*CODE_OUTPUTS, RESIDUALS_OUTPUT})}: export it again"
            )
        self._images_at_a_time = max(1, _DENSE_LIMIT_VALUES // (token_count * neuron_count))

    def run(
        self, pixels: UInt8[np.ndarray, "images 3 height width"], *, with_residuals: bool
    ) -> tuple[TokenCodes, np.ndarray, Float32[np.ndarray, "images tokens residual"] | None]:
        """Give token codes, whether each image's residuals are numbers, and the residuals where they are wanted.

        Raises:
            DeviceOutOfMemory: the batch does not fit.
            DeviceFailed: the device is lost to this process.
        """
        names = [*CODE_OUTPUTS, RESIDUALS_OUTPUT] if with_residuals else list(CODE_OUTPUTS)
        step = self._images_at_a_time
        with _runtime_errors():
            parts = [self._run(names, pixels[start : start + step]) for start in range(0, len(pixels), step)]
        joined = parts[0] if len(parts) == 1 else [np.concatenate(column) for column in zip(*parts, strict=True)]
        values, neuron_ids, cut_counts, is_finite, *residuals = joined
        codes = TokenCodes(torch.from_numpy(values), torch.from_numpy(neuron_ids), torch.from_numpy(cut_counts))
        return codes, is_finite, residuals[0] if residuals else None

    def _run(self, names: list[str], pixels: UInt8[np.ndarray, "images 3 height width"]) -> list[Any]:
        if self._device_id is None:
            outputs: list[Any] = self._session.run(names, {INPUT: np.ascontiguousarray(pixels)})
            return outputs
        # Bound, so that ONNX Runtime copies each array once. Written for a machine with CUDA; no test has run it.
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(
            INPUT, onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(pixels), "cuda", self._device_id)
        )
        for name in names:
            binding.bind_output(name, "cuda", self._device_id)
        self._session.run_with_iobinding(binding)
        bound: list[Any] = binding.copy_outputs_to_cpu()
        return bound


def quantise(source: Path, target: Path) -> None:
    """Write a graph again with 8-bit weights, one scale per output channel; activations are quantised as they come.

    Args:
        source: a graph in float32.
        target: where the other one goes; its weights go beside it.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    root.addFilter(_drop_advice)
    try:
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )
    finally:
        root.removeFilter(_drop_advice)
    # quantize_dynamic keeps the weights from everybody but their writer
    target.with_name(target.name + ".data").chmod(target.stat().st_mode)


def _drop_advice(record: logging.LogRecord) -> bool:
    """Drop the hint to prepare the graph, which the exporter has optimised already."""
    return "pre-processing before quantization" not in record.getMessage()


def _cuda_device(device: str) -> int | None:
    found = open_device(device)
    if found.type == "cpu":
        return None
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise SettingError(
            f"device {device!r} is asked for, and this build of ONNX Runtime has no CUDA; install onnxruntime-gpu, or "
            "use cpu",
            field="device",
        )
    return found.index or 0


def _providers(device_id: int | None) -> list[Any]:
    if device_id is None:
        return ["CPUExecutionProvider"]
    return [("CUDAExecutionProvider", {"device_id": device_id, "use_tf32": 0}), "CPUExecutionProvider"]


def _refuse_other_provider(found: Sequence[str], device: str) -> None:
    """Refuse a session that ONNX Runtime made for the CPU, without a word, since a library of CUDA does not load."""
    if "CUDAExecutionProvider" not in found:
        raise SettingError(
            f"device {device!r} is asked for, and ONNX Runtime {onnxruntime.__version__} cannot load its CUDA provider;"
            " install the CUDA and cuDNN libraries that this version of onnxruntime-gpu is made for, or use cpu, or "
            "serve with torch",
            field="device",
        )


@contextmanager
def _runtime_errors() -> Iterator[None]:
    try:
        yield
    except Exception as cause:  # ONNX Runtime's exceptions share no base class of its own
        text = str(cause)
        if "Failed to allocate memory" in text or "out of memory" in text:
            # The frames that failed hold the batch, and the error holds the frames.
            traceback.clear_frames(cause.__traceback__)
            raise DeviceOutOfMemory(f"the batch does not fit: {_first_line(cause)}; run a smaller one") from cause
        if "CUDA failure" in text or "CUDNN failure" in text or "CUBLAS failure" in text:
            raise DeviceFailed(f"the device failed: {_first_line(cause)}; start the process again") from cause
        raise


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().partition("\n")[0]
