"""Sets of augmentations, for what their images show and what may change in them."""

from afterimage.data.augmentations import AugmentationSet
from afterimage.plugins import AUGMENTATIONS


@AUGMENTATIONS.add("photos")
class Photos(AugmentationSet):
    """For photos of things: place, size, tilt, mirror image and colour do not matter.

    Not for classes that differ only in colour, in left and right, or in size.
    """

    spec = (
        "crop:0.3:1.15,rotate:15,flip,saturation:0.8,grey:0.2,white-balance:0.2,"
        "contrast:0.4,brightness:0.3"
    )


@AUGMENTATIONS.add("writing")
class Writing(AugmentationSet):
    """For letters, digits and documents: size, slant, tilt and tone do not matter.

    Never mirrors, never turns upside down, and cuts nothing away but the border.
    """

    spec = "zoom:0.3,rotate:17,slant:0.3,translate:0.1,contrast:0.3,brightness:0.2"


@AUGMENTATIONS.add("any-way-up")
class AnyWayUp(AugmentationSet):
    """For microscopy, satellite images, tissue: there is no up, down, left or right.

    All eight ways to turn and mirror, and crops; light and stain change a little.
    """

    spec = "crop:0.3:1.15,symmetries,white-balance:0.1,contrast:0.3,brightness:0.2"
