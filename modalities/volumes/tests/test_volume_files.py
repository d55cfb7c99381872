"""NIfTI files and DICOM series as arrays: places, values, and what is refused."""

import nibabel
import numpy as np
import pydicom
import pytest
from afterimage_volumes.files import Geometry, read_volume, resampled
from afterimage_volumes.volumes import find, split_rows
from scans import edit, save, slices

from afterimage.data.pixels import NotAnImage
from afterimage.errors import DataError

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 1000, (20, 24, 16)).astype(np.int16)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAL", "IPR", "ARI"])
def test_every_orientation_gives_the_same_volume(axes, tmp_path):
    image = nibabel.Nifti1Image(NOISE, np.diag([1.0, 2.0, 3.0, 1.0]))
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(image.affine),
        nibabel.orientations.axcodes2ornt(axes),
    )
    to = Geometry(16, 2.0)
    expected = read_volume(save(tmp_path / "a.nii", NOISE, image.affine), to)
    turned = image.as_reoriented(turn)
    assert nibabel.aff2axcodes(turned.affine) == tuple(axes)
    nibabel.save(turned, tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "b.nii.gz", to), expected)


@pytest.mark.parametrize("zoom", [(1.0, 1.0, 1.0), (0.5, 1.5, 2.5)])
@pytest.mark.parametrize("spacing", [1.0, 3.0])
def test_places_are_in_millimetres(zoom, spacing):
    """A ramp along each axis keeps its slope per mm, around the middle."""
    shape, to = [round(60 / z) for z in zoom], Geometry(16, spacing)
    for axis in range(3):
        along = (np.arange(shape[axis]) - (shape[axis] - 1) / 2) * zoom[axis]
        form = [-1 if a == axis else 1 for a in range(3)]
        values = np.broadcast_to(along.reshape(form), shape).astype(np.float32)
        found = np.moveaxis(resampled(values, np.array(zoom), to), axis, 0)
        expected = (np.arange(16) - 7.5) * spacing
        # A triangle over few voxels is not quite centred.
        np.testing.assert_allclose(found[:, 8, 8], expected, atol=0.06 * spacing)


def test_outside_of_the_file_is_zero_and_a_constant_stays_one():
    found = resampled(np.ones((10, 20, 30), np.float32), np.ones(3), Geometry(24, 1.0))
    np.testing.assert_allclose(found.sum((1, 2)) > 0, np.abs(np.arange(24) - 11.5) < 5)
    np.testing.assert_allclose(found[7:17, 2:22], 1, atol=1e-6)


def test_values_are_scaled_by_quantiles_or_by_a_window(tmp_path):
    path, to = tmp_path / "a.nii", Geometry(16, 1.0)
    values = RNG.normal(100, 10, (16, 16, 16)).astype(np.float32)
    values[:, :, :8] = -500  # background: neither quantile is there
    values[0, 0, 15] = 1e6
    found = read_volume(save(path, values), to)
    assert found[:, :, :8].max() == 0
    low, high = np.quantile(values[values > -500], (0.005, 0.995))
    expected = np.clip((values - low) / (high - low), 0, 1) * 255
    np.testing.assert_allclose(found, expected, atol=1.01)
    found = read_volume(path, Geometry(16, 1.0, (90.0, 110.0)))
    expected = np.clip((values - 90) / 20, 0, 1) * 255
    np.testing.assert_allclose(found, expected, atol=0.51)


def test_a_scaled_file_in_micrometres_is_read_as_its_header_says(tmp_path):
    image = nibabel.Nifti1Image(NOISE, np.diag([500.0, 500.0, 500.0, 1.0]))
    image.header.set_slope_inter(0.5, -100)
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "a.nii")
    to = Geometry(16, 0.5, (-100.0, 400.0))
    values = np.asarray(nibabel.load(tmp_path / "a.nii").dataobj)
    expected = read_volume(
        save(tmp_path / "b.nii", values.astype(np.float32), np.diag([0.5] * 3 + [1])),
        to,
    )
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii", to), expected)


def test_a_series_equals_the_same_volume_as_nifti(tmp_path):
    folder = slices(tmp_path / "ct", NOISE)
    # Rows run to the back and columns to the left: both are negative in NIfTI.
    affine = np.array(
        [[0, -1.0, 0, 5], [-1.5, 0, 0, -7], [0, 0, 2.0, 30], [0, 0, 0, 1]]
    )
    hounsfield = 2.0 * NOISE.astype(np.float32) - 1000
    path, to = (
        save(tmp_path / "a.nii", hounsfield, affine),
        Geometry(16, 2.0, (-900, 900)),
    )
    np.testing.assert_array_equal(read_volume(folder, to), read_volume(path, to))


REASONS = {
    "in time": (lambda p: save(p, np.ones((8, 8, 8, 3), np.float32)), "split a series"),
    "flat": (lambda p: save(p, np.ones((8, 8), np.float32)), r"shape \(8, 8\)"),
    "NaN": (
        lambda p: save(p, np.where(NOISE < 10, np.nan, NOISE)),
        "NaN or infinite",
    ),
    "constant": (lambda p: save(p, np.ones((8, 8, 8), np.float32)), "the same value"),
    "colours": (
        lambda p: save(p, np.zeros((8, 8, 8), [(c, "u1") for c in "RGB"])),
        "expected numbers",
    ),
    "no spacing": (
        lambda p: save(p, NOISE, np.diag([1e-9, 1.0, 1.0, 1.0])), "correct its header"
    ),
    "text": (lambda p: p.write_text("not a volume"), "is not a NIfTI file"),
    "missing": (lambda p: None, "does not exist"),
}  # fmt: skip


@pytest.mark.parametrize("name", REASONS)
def test_a_file_that_cannot_be_used_is_refused_with_its_reason(name, tmp_path):
    make, reason = REASONS[name]
    make(tmp_path / "a.nii")
    with pytest.raises(NotAnImage, match=reason):
        read_volume(tmp_path / "a.nii", Geometry(16, 1.0))


def test_damaged_files_are_listed_together(tmp_path):
    for name in "abc":
        save(tmp_path / f"{name}.nii.gz", NOISE)
    whole = (tmp_path / "b.nii.gz").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.nii.gz").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"(?s)b\.nii\.gz is .*c\.nii\.gz is "
    ) as raised:
        find(str(tmp_path)).pixels(Geometry(16, 1.0))
    assert "a.nii.gz" not in str(raised.value)


SERIES = {
    "missing": (lambda f: middle(f).unlink(), "4.00 mm.*a slice is missing"),
    "doubled": (
        lambda f: (f / "x.dcm").write_bytes((f / "000.dcm").read_bytes()),
        r"000\.dcm and x\.dcm are at the same place",
    ),
    "mixed": (
        lambda f: edit(f / "003.dcm", SeriesInstanceUID="1.2.3"),
        r"000\.dcm and 003\.dcm differ in SeriesInstanceUID",
    ),
    "turned": (
        lambda f: edit(f / "003.dcm", ImageOrientationPatient=[0, 1, 0, 1, 0, 0]),
        "differ in ImageOrientationPatient",
    ),
    "no place": (
        lambda f: edit(f / "003.dcm", ImagePositionPatient=None),
        r"003\.dcm has no ImagePositionPatient",
    ),
    "inverted": (
        lambda f: edit(f / "003.dcm", PhotometricInterpretation="MONOCHROME1"),
        r"003\.dcm is MONOCHROME1",
    ),
    "short": (
        lambda f: edit(f / "003.dcm", PixelData=b"\0" * 10),
        r"003\.dcm: its pixels cannot be read",
    ),
    "text": (lambda f: (f / "x.dcm").write_text("hm"), r"x\.dcm is not DICOM"),
}


def middle(folder):
    """A slice that is neither the first nor the last."""
    places = {p: pydicom.dcmread(p).ImagePositionPatient[2] for p in folder.iterdir()}
    return sorted(places, key=lambda p: places[p])[5]


@pytest.mark.parametrize("name", SERIES)
def test_a_series_that_is_not_whole_is_refused(name, tmp_path):
    break_it, reason = SERIES[name]
    break_it(slices(tmp_path / "ct", NOISE[..., :8]))
    with pytest.raises(NotAnImage, match=reason):
        read_volume(tmp_path / "ct", Geometry(16, 1.0))


def test_a_folder_is_searched_for_files_and_series(tmp_path):
    save(tmp_path / "b" / "x.nii.gz", NOISE)
    save(tmp_path / "a.nii", NOISE)
    slices(tmp_path / "c" / "series 1", NOISE[..., :4])
    (tmp_path / "notes.txt").write_text("hello")
    save(tmp_path / ".hidden" / "y.nii", NOISE)
    assert find(str(tmp_path)).ids == ["a.nii", "b/x.nii.gz", "c/series 1"]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (["scan,label", "a.nii,x"], "no column 'volume'"),
        (["volume,class", "a.nii,x"], "no column 'label'"),
        (["volume,label"], "no volumes"),
        (["volume,label", "a.nii,", ",x"], r"(?s)line 3: no volume.*line 2: no label"),
        (["volume,label", "a.nii,x", "a.nii,y"], "a.nii: twice"),
        (["volume,label,split", "a.nii,x,tset"], "split 'tset'"),
    ],
)
def test_a_wrong_table_is_refused(rows, reason, tmp_path):
    (tmp_path / "t.csv").write_text("\n".join(rows))
    with pytest.raises(DataError, match=reason):
        find(str(tmp_path / "t.csv"), labels=True)


def table_of_patients(tmp_path, more=""):
    lines = [f"{n}.nii,{'ab'[n // 2 % 2]},p{n // 2}{more}" for n in range(40)]
    head = "volume,label,patient" + (",split" if more else "")
    (tmp_path / "t.csv").write_text("\n".join([head, *lines]))
    return find(str(tmp_path / "t.csv"), labels=True)


def test_patients_stay_together(tmp_path):
    found = table_of_patients(tmp_path)
    rows, _ = split_rows(found, ["a", "b"], 0.2, 0.25, seed=3)
    assert {split: len(part) for split, part in rows.items()} == {
        "train": 24, "validation": 8, "test": 8
    }  # fmt: skip
    for part in rows.values():
        assert set(part) == {n ^ 1 for n in part}  # both volumes of each patient
        assert np.mean(part // 2 % 2) == 0.5  # each class its share
    other = split_rows(found, ["a", "b"], 0.2, 0.25, seed=4)[0]
    assert set(other["test"]) != set(rows["test"])


def test_a_patient_in_two_splits_is_refused(tmp_path):
    found = table_of_patients(tmp_path, ",train")
    found.splits[5] = "test"
    with pytest.raises(DataError, match="patient 'p2' is in several splits"):
        split_rows(found, ["a", "b"], 0.2, 0.0, seed=0)
