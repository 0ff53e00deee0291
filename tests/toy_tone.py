"""A toy medium and its codec: all that a new medium takes. Sounds of one channel, as WAV files."""

import io
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.autoencoders.quantizers import Quantized
from models.checkpoint import fingerprint, load_checkpoint, load_into
from models.media.base import Array, InvalidMedia, MediaInfo, MediumSpec
from models.media.provenance import Provenance
from models.options import CHECKED

MEDIUM = "tone"
KIND = "toy_codec"


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ToneSpec(MediumSpec):
    num_samples: Annotated[int, Field(ge=1)]
    sample_rate_hz: Annotated[int, Field(ge=1)]
    medium: Literal["tone"] = "tone"


class ToneMedium:
    """Sounds: arrays (N,) int16, signals (1, N) in [-1, 1]."""

    name = MEDIUM
    formats: Mapping[str, str] = {"wav": "audio/wav"}
    lossless_format = "wav"
    spec_class = ToneSpec

    def load(self, data: bytes, spec: ToneSpec) -> Array:
        samples, _ = self._read(data)
        return np.pad(samples[: spec.num_samples], (0, max(0, spec.num_samples - len(samples))))

    def decoding_bytes(self, data: bytes) -> int:
        return len(data)

    def save(
        self,
        array: Array,
        format: str,
        *,
        background: str = "white",
        provenance: Provenance | None = None,
    ) -> bytes:
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(array.astype("<i2").tobytes())
        return buffer.getvalue()

    def info(self, data: bytes) -> MediaInfo:
        samples, rate_hz = self._read(data)
        return MediaInfo("audio/wav", duration_s=len(samples) / rate_hz, sample_rate_hz=rate_hz)

    def preview(self, array: Array) -> None:
        return None

    def to_signal(self, array: Array) -> Array:
        return array.astype(np.float32)[None] / 32768

    def from_signal(self, signal: Array) -> Array:
        return (signal[0] * 32768).round().clip(-32768, 32767).astype(np.int16)

    def _read(self, data: bytes) -> tuple[Array, int]:
        try:
            with wave.open(io.BytesIO(data)) as file:
                if file.getnchannels() != 1 or file.getsampwidth() != 2:
                    raise InvalidMedia("tone: one channel of 16 bits, got another WAV file")
                return np.frombuffer(file.readframes(file.getnframes()), "<i2"), file.getframerate()
        except (wave.Error, EOFError) as error:
            raise InvalidMedia(f"tone: the bytes are not a WAV file: {error}") from error


TONE = ToneMedium()


@dataclass(frozen=True, config=CHECKED)
class ToyCodecConfig:
    num_samples: int = 64
    factor: int = 8
    num_levels: int = 32


class ToyCodec(nn.Module):
    """Means of ``factor`` samples, in ``num_levels`` steps: signals (B, 1, N) ⇄ latents (B, 1, N/factor)."""

    def __init__(self, config: ToyCodecConfig) -> None:
        super().__init__()
        self.config = config
        self.levels = nn.Parameter(torch.linspace(-1, 1, config.num_levels))

    @classmethod
    def load(cls, path: Path) -> "ToyCodec":
        tensors, config = load_checkpoint(path, ToyCodecConfig)
        codec = cls(config)
        load_into(codec, tensors, path)
        return codec.eval().requires_grad_(False)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (1, self.config.num_samples // self.config.factor)

    @property
    def signal_shape(self) -> tuple[int, ...]:
        return (1, self.config.num_samples)

    def fingerprint(self) -> str:
        return fingerprint({"factor": self.config.factor}, self.state_dict())

    def encode(self, signal: Tensor) -> Tensor:
        return signal.unfold(2, self.config.factor, self.config.factor).mean(-1)

    def quantize(self, latents: Tensor) -> Quantized:
        codes = (latents[:, 0, :, None] - self.levels).abs().argmin(-1)
        return Quantized(self.lookup(codes), codes, latents.new_zeros(()))

    def lookup(self, codes: Tensor) -> Tensor:
        return self.levels[codes][:, None]

    def decode(self, latents: Tensor) -> Tensor:
        return latents.repeat_interleave(self.config.factor, dim=2)
