"""Images that a generation begins with: read from untrusted bytes, brought to the job's size, and the pipeline that takes them.

Decides what is an image: a PNG or JPEG of bounded size, whole and sound. Must not know where the bytes come from. Pillow and
diffusers are imported when they are needed.
"""

from __future__ import annotations

import io
import warnings
from typing import Any, Final

from atoll.model import limits
from atoll.model.errors import FieldError
from atoll.model.modelspec import IMAGE_TO_IMAGE
from atoll.model.shape import Shape

FORMATS: Final = ("PNG", "JPEG")
_RULE: Final = f"a whole PNG or JPEG of at most {limits.SIDE_PX_MAX} pixels a side and {limits.FRAME_PX_MAX} in all"


def read_image(data: bytes) -> Any:
    """The image in `data` as a PIL image, RGB, upright. FieldError for anything else; one too large is refused before it is unpacked."""
    from PIL import Image, ImageOps

    if len(data) > limits.IMAGE_BYTES_MAX:
        raise FieldError("inputs.image", f"{len(data)} bytes", f"at most {limits.IMAGE_BYTES_MAX} bytes")
    try:
        with warnings.catch_warnings():
            # Of sizes that are refused here Pillow only warns, and a damaged note of the camera harms no pixel.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                width, height = opened.size
                if max(width, height) > limits.SIDE_PX_MAX or width * height > limits.FRAME_PX_MAX:
                    raise FieldError("inputs.image", f"{width}x{height}", _RULE)
                opened.load()
                upright = ImageOps.exif_transpose(opened)
                return upright.convert("RGB")
    except FieldError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged file makes Pillow raise whatever its decoders do
        raise FieldError("inputs.image", f"{len(data)} bytes ({type(error).__name__}: {error})", _RULE) from None


def place_image(image: Any, shape: Shape) -> Any:
    """The image in the shape's size: scaled to cover it, the middle kept, so that nothing is distorted."""
    from PIL import Image, ImageOps

    size = (shape.width, shape.height)
    return image if image.size == size else ImageOps.fit(image, size, method=Image.Resampling.LANCZOS)


def image_sibling(pipeline: Any) -> Any:
    """The form of a pipeline that begins with an image, made of the very same components. FieldError if it has none."""
    name = type(pipeline).__name__
    if name not in IMAGE_TO_IMAGE:
        raise FieldError("inputs.image", name, "no image: this pipeline has no form that begins with one")
    import diffusers

    # As diffusers' AutoPipelineForImage2Image does, which would import every pipeline there is; from_pipe would change number formats.
    form = getattr(diffusers, IMAGE_TO_IMAGE[name])
    modules, options = form._get_signature_keys(form)
    parts = {key: pipeline.components[key] for key in modules if key in pipeline.components}
    sibling = form(**parts, **{key: pipeline.config[key] for key in options if key in pipeline.config})
    sibling.set_progress_bar_config(disable=True)
    return sibling
