"""One volume: a NIfTI file or a DICOM series, to bytes of one orientation and size."""

import pathlib
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Float, UInt8

from afterimage.data.pixels import NotAnImage

NIFTI = (".nii", ".nii.gz")
MOST_VOXELS = 2**29
"""Of one file: 2 GB as float32."""
_UNITS = {"meter": 1000.0, "micron": 0.001}
_NEEDED = (
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("SeriesInstanceUID", "Rows", "Columns", "PixelData"),
)
_QUANTILES, _SAMPLE = (0.005, 0.995), 2**20


class Geometry(msgspec.Struct, frozen=True):
    """What every volume is brought to."""

    size: int
    """Voxels along each side."""
    spacing: float
    """Millimetres from voxel to voxel."""
    window: tuple[float, float] | None = None
    """The values that become 0 and 255; None: quantiles of each volume."""

    def __str__(self) -> str:
        side = " x ".join([str(self.size)] * 3)
        return f"{side} voxels of {self.spacing:g} mm ({self.size * self.spacing:g} mm)"


def read_volume(path: pathlib.Path, to: Geometry) -> UInt8[np.ndarray, "s s s"]:
    """A file or a folder of slices, as `prepared` makes it.

    Raises NotAnImage with a reason for the user.
    """
    image = series(path) if path.is_dir() else nifti(path)
    try:
        return prepared(image, to)
    except (OSError, EOFError, ValueError, ArithmeticError, MemoryError) as error:
        raise NotAnImage(f"is damaged: {error}") from error


def nifti(path: pathlib.Path) -> Any:
    """A NIfTI file, whose values are not read yet; NotAnImage if it is none."""
    import nibabel

    if not path.is_file():
        raise NotAnImage("does not exist" if not path.exists() else "is not a file")
    try:
        return nibabel.load(path)
    except Exception as error:  # of many kinds, without a common one
        raise NotAnImage(f"is not a NIfTI file, or is damaged: {error}") from error


def prepared(image: Any, to: Geometry) -> UInt8[np.ndarray, "s s s"]:
    """A nibabel image in the geometry `to`; the axes run right, anterior, superior.

    Axes are swapped and mirrored to the nearest of these (RAS); an oblique volume is
    not turned. Values are scaled to [0, 1] by the window or, without one, by the 0.5
    and 99.5 % quantiles of the voxels above the minimum; then resampled (`resampled`).
    Raises NotAnImage for what is not one volume of finite numbers.
    """
    import nibabel

    shape = tuple(image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 2:
        more = "; split a series in time into its volumes" if len(shape) == 4 else ""
        raise NotAnImage(f"has the shape {shape}; expected [x, y, z]{more}")
    if np.prod(shape, dtype=float) > MOST_VOXELS:
        raise NotAnImage(f"has the shape {shape}, more than {MOST_VOXELS:,} voxels")
    if image.get_data_dtype().kind not in "iuf":
        raise NotAnImage(f"has values of {image.get_data_dtype()}; expected numbers")
    affine = np.asarray(image.affine, float)
    zooms = nibabel.affines.voxel_sizes(affine)  # pyright: ignore
    unit = getattr(image.header, "get_xyzt_units", lambda: ("mm",))()[0]
    zooms = zooms * _UNITS.get(unit, 1.0)
    flat = not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12
    if flat or not (zooms.min() > 1e-3 and zooms.max() < 1e3):
        raise NotAnImage(
            f"has voxels of {zooms.round(4).tolist()} mm; correct its header"
        )
    turn = nibabel.orientations.io_orientation(affine)  # pyright: ignore
    values = np.asarray(image.dataobj, np.float32).reshape(shape)
    if bad := values.size - int(np.isfinite(values).sum()):
        raise NotAnImage(f"has {bad:,} voxels that are NaN or infinite; write 0 there")
    values = nibabel.orientations.apply_orientation(values, turn)  # pyright: ignore
    order = np.argsort(turn[:, 0])
    scaled = resampled(_scaled(values, to.window), zooms[order], to)
    return np.round(255 * scaled).astype(np.uint8)


def _scaled(
    values: Float[np.ndarray, "x y z"], window: tuple[float, float] | None
) -> Float[np.ndarray, "x y z"]:
    """Values in [0, 1]; what lies outside the window or the quantiles is clipped."""
    if window is None:
        some = values.reshape(-1)[:: -(-values.size // _SAMPLE)]
        some = some[some > some.min()]
        if not some.size or np.ptp(low_high := np.quantile(some, _QUANTILES)) <= 0:
            raise NotAnImage("has the same value almost everywhere")
        window = float(low_high[0]), float(low_high[1])
    low, high = window
    return np.clip((values - low) / (high - low), 0, 1)


def resampled(
    values: Float[np.ndarray, "x y z"], zooms: np.ndarray, to: Geometry
) -> Float[np.ndarray, "s s s"]:
    """Values on the grid of `to`, around the middle of their own; 0 outside.

    Linear between voxels; onto a coarser grid, the mean over a triangle of twice its
    spacing. `zooms` are mm from voxel to voxel.
    """
    for axis, zoom in enumerate(zooms):
        if (values.shape[axis], zoom) == (to.size, to.spacing):
            continue
        weights = _weights(values.shape[axis], float(zoom), to)
        values = np.moveaxis(np.tensordot(weights, values, (1, axis)), 0, axis)
    return values


def _weights(count: int, zoom: float, to: Geometry) -> Float[np.ndarray, "s n"]:
    """What each voxel of an axis gives to each new one."""
    offset = np.arange(to.size) - (to.size - 1) / 2
    place = offset * to.spacing / zoom + (count - 1) / 2
    away = np.abs(place[:, None] - np.arange(count)[None])
    weights = np.clip(1 - away / max(1.0, to.spacing / zoom), 0, None)
    inside = (place >= -0.5) & (place <= count - 0.5)
    total = np.maximum(weights.sum(1, keepdims=True), 1e-9)
    return np.where(inside[:, None], weights / total, 0).astype(np.float32)


def is_dicom(path: pathlib.Path) -> bool:
    """Whether a file is DICOM, by its name or its first bytes."""
    if path.suffix.lower() in (".dcm", ".dicom", ".ima"):
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM" and path.name != "DICOMDIR"
    except OSError:
        return False


def series(folder: pathlib.Path) -> Any:
    """The slices of a folder as one nibabel image, values rescaled (CT: to Hounsfield).

    Slices are sorted along their normal. Raises NotAnImage if the folder has several
    series, or slices that are missing, doubled, of different shapes or compressed.
    """
    import nibabel

    names = sorted(path for path in folder.iterdir() if is_dicom(path))
    slices = [(path.name, _slice(path)) for path in names]
    if len(slices) < 2:
        raise NotAnImage(f"has {len(slices)} DICOM slices; expected at least 2")
    for what in ("SeriesInstanceUID", "ImageOrientationPatient", "PixelSpacing"):
        _alike(slices, what, lambda one, what=what: one.get(what))
    _alike(slices, "shape", lambda one: (one.Rows, one.Columns))
    first = slices[0][1]
    across, down = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(across, down)
    place = [np.array(one.ImagePositionPatient, float) @ normal for _, one in slices]
    order = np.argsort(place, kind="stable")
    gap = _gap([slices[n][0] for n in order], np.array(place)[order])
    slices = [slices[n] for n in order]
    values = np.stack([_values(name, one) for name, one in slices], -1)
    rows, columns = (float(mm) for mm in first.PixelSpacing)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([down * rows, across * columns, normal * gap], 1)
    affine[:3, 3] = slices[0][1].ImagePositionPatient
    affine[:2] *= -1  # DICOM counts to the left and back, NIfTI right and forward
    return nibabel.Nifti1Image(values, affine)


def _slice(path: pathlib.Path) -> Any:
    """The header and bytes of a slice that this package can place."""
    import pydicom

    try:
        one = pydicom.dcmread(path)
        wrong = [name for name in _NEEDED if one.get(name) is None]
        kind = one.get("PhotometricInterpretation", "MONOCHROME2")
        frames = int(one.get("NumberOfFrames") or 1)
    except Exception as error:  # of many kinds, without a common one
        raise NotAnImage(f"{path.name} is not DICOM, or is damaged: {error}") from error
    if frames > 1:
        raise NotAnImage(f"{path.name} has {frames} frames; convert it to NIfTI")
    if wrong:
        raise NotAnImage(f"{path.name} has no {', '.join(wrong)}; remove it")
    if kind != "MONOCHROME2":
        raise NotAnImage(f"{path.name} is {kind}; expected MONOCHROME2")
    return one


def _alike(slices: list[tuple[str, Any]], what: str, value: Any) -> None:
    (known, first), *others = slices
    for name, one in others:
        a, b = value(first), value(one)
        same = a == b
        if what not in ("SeriesInstanceUID", "shape"):
            same = np.allclose(np.array(a, float), np.array(b, float), atol=1e-3)
        if not same:
            raise NotAnImage(
                f"{known} and {name} differ in {what} ({a}, {b}); give each series a "
                "folder of its own"
            )


def _gap(names: list[str], place: np.ndarray) -> float:
    """Millimetres between slices; NotAnImage if one is missing or doubled."""
    gaps = np.diff(place)
    usual = float(np.median(gaps))
    for before, after, gap in zip(names, names[1:], gaps):
        if gap < 0.1 * usual or gap <= 1e-3:
            raise NotAnImage(f"{before} and {after} are at the same place; remove one")
        if abs(gap - usual) > 0.1 * usual:
            raise NotAnImage(
                f"{before} and {after} are {gap:.2f} mm apart, other slices "
                f"{usual:.2f} mm; a slice is missing, or the series is not regular"
            )
    return usual


def _values(name: str, one: Any) -> Float[np.ndarray, "r c"]:
    try:
        pixels = one.pixel_array.astype(np.float32)
    except Exception as error:  # a missing decoder, or too few bytes
        raise NotAnImage(
            f"{name}: its pixels cannot be read: {str(error).splitlines()[0]} For "
            "compressed slices: pip install 'pylibjpeg[all]'"
        ) from error
    slope, intercept = one.get("RescaleSlope"), one.get("RescaleIntercept")
    return pixels * np.float32(1 if slope is None else slope) + np.float32(
        intercept or 0
    )
