"""Small volumes on disk, for the tests."""

import nibabel
import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def save(path, values, affine=None):
    """A NIfTI file; 1 mm without an affine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.eye(4) if affine is None else affine
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def blobs(folder, count=16, side=16, seed=0):
    """`count` volumes of noise, every second with a bright cube, and their table."""
    rng = np.random.default_rng(seed)
    lines = ["volume,label"]
    for n in range(count):
        values = rng.normal(4, 1, (side, side, side)).astype(np.float32)
        if n % 2:
            values[4:10, 4:10, 4:10] += 6
        save(folder / "scans" / f"{n:02}.nii.gz", values)
        lines.append(f"scans/{n:02}.nii.gz,{('none', 'cube')[n % 2]}")
    table = folder / "scans.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


def slices(
    folder, values, *, gap=2.0, spacing=(1.5, 1.0), slope=2.0, intercept=-1000.0
):
    """A CT series of `values` [rows, columns, slices], its files in random order."""
    folder.mkdir(parents=True)
    series, order = (
        generate_uid(),
        np.random.default_rng(0).permutation(values.shape[2]),
    )
    for name, z in enumerate(order):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, generate_uid()
        one.SeriesInstanceUID, one.Modality = series, "CT"
        one.Rows, one.Columns = values.shape[:2]
        one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        one.ImagePositionPatient = [-5.0, 7.0, 30.0 + gap * int(z)]
        one.PixelSpacing = list(spacing)
        one.RescaleSlope, one.RescaleIntercept = slope, intercept
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit = 16, 16, 15
        one.PixelRepresentation = 0
        one.PixelData = values[..., z].astype("<u2").tobytes()
        one.save_as(folder / f"{name:03}.dcm", enforce_file_format=True)
    return folder


def edit(path, **values):
    """Changes attributes of a slice; None removes one."""
    one = pydicom.dcmread(path)
    for name, value in values.items():
        if value is None:
            delattr(one, name)
        else:
            setattr(one, name, value)
    one.save_as(path, enforce_file_format=True)
