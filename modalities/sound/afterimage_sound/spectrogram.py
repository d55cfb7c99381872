"""Samples -> decibels of the mel spectrogram -> a uint8 picture, under jit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, UInt8

from afterimage_sound.rendering import Rendering

_SILENCE = -100.0  # dB, as in librosa's power_to_db
# Slaney's mel scale (Auditory Toolbox, 1998): linear to 1 kHz, then logarithmic.
_STEP, _KNEE, _LOG_STEP = 200 / 3, 1000.0, np.log(6.4) / 27


def _to_mel(hertz: np.ndarray) -> np.ndarray:
    above = _KNEE / _STEP + np.log(np.maximum(hertz, _KNEE) / _KNEE) / _LOG_STEP
    return np.where(hertz < _KNEE, hertz / _STEP, above)


def _to_hertz(mel: np.ndarray) -> np.ndarray:
    above = _KNEE * np.exp(_LOG_STEP * (mel - _KNEE / _STEP))
    return np.where(mel < _KNEE / _STEP, mel * _STEP, above)


def mel_filters(rendering: Rendering) -> Float64[np.ndarray, "mels bins"]:
    """Triangles over the bins of the transform, evenly spaced in mel.

    Each has the area 1 Hz (Slaney's norm): equal to `librosa.filters.mel`.
    """
    bins = np.fft.rfftfreq(rendering.window, 1 / rendering.rate)
    low, high = _to_mel(np.array([rendering.low, rendering.highest], np.float64))
    edges = _to_hertz(np.linspace(low, high, rendering.mels + 2))
    low, middle, high = (edges[i : i + rendering.mels, None] for i in range(3))
    rise, fall = (bins - low) / (middle - low), (high - bins) / (high - middle)
    return np.maximum(0, np.minimum(rise, fall)) * 2 / (high - low)


@functools.partial(jax.jit, static_argnames="rendering")
def log_mel(
    samples: Float[Array, " n"] | Float[np.ndarray, " n"], rendering: Rendering
) -> Float[Array, "mels frames"]:
    """Decibels of a clip's mel spectrogram, low tones first: see `Rendering`.

    `samples` are those of a clip at the rendering's rate, in [-1, 1].
    """
    window = rendering.window
    starts = rendering.hop * np.arange(rendering.frames)
    half = window // 2
    padded = jnp.pad(jnp.asarray(samples, jnp.float32), (half, half))
    pieces = padded[starts[:, None] + np.arange(window)[None]]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    spectrum = jnp.fft.rfft(pieces * hann[None].astype(np.float32))
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    filters = mel_filters(rendering).astype(np.float32)
    # Accelerators multiply matrices in a few bits unless told otherwise.
    mel = jnp.matmul(filters, power.T, precision="highest")
    return 10 * jnp.log10(jnp.maximum(mel, 10 ** (_SILENCE / 10)))


@functools.partial(jax.jit, static_argnames="rendering")
def _scaled(
    samples: Float[np.ndarray, " n"], rendering: Rendering
) -> UInt8[Array, "mels frames"]:
    decibels = log_mel(samples, rendering)
    top = rendering.top
    if top is None:
        top = jnp.maximum(decibels.max(), _SILENCE + rendering.range)
    share = jnp.clip((decibels - top) / rendering.range + 1, 0, 1)
    return jnp.round(255 * share[::-1]).astype(jnp.uint8)


def picture(
    samples: Float[np.ndarray, " n"], rendering: Rendering
) -> UInt8[np.ndarray, "mels frames"]:
    """A clip's picture, high tones in the first row; computed on the default device.

    A shorter clip is continued by silence, a longer one is cut.
    """
    clip = np.zeros(rendering.samples, np.float32)
    length = min(len(clip), len(samples))
    clip[:length] = samples[:length]
    return np.asarray(_scaled(clip, rendering))
