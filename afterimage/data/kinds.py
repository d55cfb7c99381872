"""Identifies files that we cannot read, by their first bytes."""

_WEB = (b"<html", b"<!doctype")
_HEIF = {
    b"heic": "a HEIC", b"heix": "a HEIC", b"heim": "a HEIC", b"heis": "a HEIC",
    b"hevc": "a HEIC", b"mif1": "a HEIF", b"msf1": "a HEIF", b"avif": "an AVIF",
    b"avis": "an AVIF", b"jpeg": "a HEIF", b"crx ": "a Canon raw",
}  # fmt: skip
_STARTS = {
    b"\0\0\0\x0cjP  ": "a JPEG 2000 image",
    b"\xff\x4f\xff\x51": "a JPEG 2000 image",
    b"\xff\x0a": "a JPEG XL image",
    b"\0\0\0\x0cJXL ": "a JPEG XL image",
    b"II\xbc\x01": "a JPEG XR image",
    b"8BPS": "a Photoshop document",
    b"\x76\x2f\x31\x01": "an OpenEXR image",
    b"#?RADIANCE": "a Radiance HDR image",
    b"SIMPLE  =": "a FITS image",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"qoif": "a QOI image",
    b"\0\0\1\0": "an icon (ICO)",
    b"DDS ": "a DirectDraw surface",
    b"gimp xcf": "a GIMP document",
    b"AT&TFORM": "a DjVu document",
    b"%PDF": "a PDF document",
    b"%!PS": "a PostScript document",
    b"<svg": "an SVG drawing",
    b"PK\3\4": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x1aE\xdf\xa3": "a Matroska or WebM film",
    b"version https://git-lfs": "a Git LFS pointer; run git lfs pull to get the file",
}


def kind_of(start: bytes) -> str:
    """The kind of a file, from its first bytes (132 suffice), to end a sentence."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(_WEB):
        return "a web page, not an image"
    name = _name(start, text)
    if name is None:
        return "not a JPEG, PNG, WebP, BMP, GIF or TIFF image"
    return f"{name}, which is not supported; convert it to PNG, JPEG or TIFF"


def _name(start: bytes, text: bytes) -> str | None:
    for begin, name in _STARTS.items():
        if start.startswith(begin) or text.startswith(begin):
            return name
    if text.startswith(b"<?xml") and b"<svg" in text:
        return "an SVG drawing"
    if start.startswith(b"\xff\xd8\xff"):
        return "a damaged JPEG, or a rare kind of JPEG (12 bits, JPEG-LS)"
    if start[:1] == b"P" and start[1:2] in b"1234567Ff" and start[2:3] in b" \t\r\n":
        return "a Netpbm image (PBM, PGM, PPM, PAM, PFM)"
    if start[4:8] == b"ftyp":
        brand = _HEIF.get(start[8:12])
        return f"{brand} image" if brand else "an MP4 or QuickTime film"
    if start[128:132] == b"DICM":
        return "a DICOM file"
    if start[:4] in (b"\x5c\1\0\0", b"\0\0\1\x5c"):
        return "a NIfTI volume"
    return None
