"""Pictures to files and back: PNG and MP4 with what is needed to make them again, and digests of pixels.

Decides formats, encoder settings and metadata keys. Equal frames and facts give equal bytes on one version of Pillow
and of the H.264 encoder; pixel digests of PNGs are equal everywhere. Imports no torch.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agents.engine.errors import EngineError
from agents.engine.request import GeneratedItem, Generation, GenerationRequest
from atoll import __version__
from atoll.model.attempt import FailureKind
from atoll.model.errors import FieldError

PNG: Final = "image/png"
MP4: Final = "video/mp4"
# Visually lossless for H.264 (0 is lossless, 23 the default): a result is not to be judged by its encoding.
_CRF: Final = "18"
# Larger text chunks are not ours; Pillow's own bound against decompression bombs is the same.
_TEXT_BYTES_MAX: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureFacts:
    """What made a picture, enough to make it again. `index` of `batch` from 0; `guidance` None: the pipeline has
    none. `adapters` with their scales; `image` is the digest of the picture that it began with, "" without one."""

    job: str
    attempt: int
    model: str
    model_digest: str
    prompt: str
    negative_prompt: str = ""
    seed: int
    width: int
    height: int
    frames: int
    fps: int
    steps: int
    guidance: float | None
    batch: int
    index: int
    precision: str
    adapters: tuple[tuple[str, float], ...] = ()
    image: str = ""
    strength: float = 0.0

    def to_text(self) -> dict[str, str]:
        """The facts as texts, by metadata key; keys in a fixed order, those of adapters and of an image only where there are any."""
        more = {"adapters": " ".join(f"{name}:{scale!r}" for name, scale in self.adapters)} if self.adapters else {}
        if self.image:
            more |= {"image": self.image, "strength": repr(self.strength)}
        return {
            "seed": str(self.seed),
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "model": self.model,
            "model_digest": self.model_digest,
            "job": self.job,
            "attempt": str(self.attempt),
            "steps": str(self.steps),
            "size": f"{self.width}x{self.height}",
            "frames": str(self.frames),
            "fps": str(self.fps),
            "guidance": "" if self.guidance is None else repr(self.guidance),
            "batch": str(self.batch),
            "index": str(self.index),
            "precision": self.precision,
            **more,
            "atoll_version": __version__,
        }

    @classmethod
    def from_text(cls, text: dict[str, str]) -> PictureFacts:
        """The facts in a picture's metadata; FieldError if it does not carry them."""
        try:
            width, _, height = text["size"].partition("x")
            return cls(
                job=text["job"],
                attempt=int(text["attempt"]),
                model=text["model"],
                model_digest=text["model_digest"],
                prompt=text["prompt"],
                negative_prompt=text["negative_prompt"],
                seed=int(text["seed"]),
                width=int(width),
                height=int(height),
                frames=int(text["frames"]),
                fps=int(text["fps"]),
                steps=int(text["steps"]),
                guidance=float(text["guidance"]) if text["guidance"] else None,
                batch=int(text["batch"]),
                index=int(text["index"]),
                precision=text["precision"],
                adapters=tuple(_adapter(part) for part in text.get("adapters", "").split()),
                image=text.get("image", ""),
                strength=float(text.get("strength", "0")),
            )
        except (KeyError, ValueError) as error:
            raise FieldError("metadata", dict(text), f"the metadata of a picture made by Atoll ({error!r})") from None


def _adapter(text: str) -> tuple[str, float]:
    name, _, scale = text.rpartition(":")
    return name, float(scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedItem:
    """One result as a file. `pixel_digest` is of the pixels that decoding `data` gives."""

    name: str
    media_type: str
    data: bytes
    pixel_digest: str


def encode_generation(
    generation: Generation,
    request: GenerationRequest,
    *,
    job: str,
    attempt: int,
    model: str,
    model_digest: str,
    precision: str,
    video: bool,
    image_digest: str = "",
) -> tuple[EncodedItem, ...]:
    """Every item of a generation as a file named by its index: `0.png`, `1.png`, or `0.mp4`."""
    encoded = []
    shape = request.shape
    for index, item in enumerate(generation.items):
        facts = PictureFacts(
            job=job,
            attempt=attempt,
            model=model,
            model_digest=model_digest,
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            seed=item.seed,
            width=shape.width,
            height=shape.height,
            frames=shape.frames,
            fps=request.fps,
            steps=shape.steps,
            guidance=generation.guidance,
            batch=shape.batch,
            index=index,
            precision=precision,
            adapters=tuple((str(name), scale) for name, scale in request.adapters),
            image=image_digest,
            strength=request.strength,
        )
        encoded.append(_encode_item(item, facts, video=video))
    return tuple(encoded)


def _encode_item(item: GeneratedItem, facts: PictureFacts, *, video: bool) -> EncodedItem:
    if video:
        data = encode_mp4(item.frames, fps=facts.fps, text=facts.to_text())
        decoded = pixel_digest_of_frames(_decode_mp4(io.BytesIO(data)))
        return EncodedItem(name=f"{facts.index}.mp4", media_type=MP4, data=data, pixel_digest=decoded)
    data = encode_png(item.frames[0], facts.to_text())
    return EncodedItem(name=f"{facts.index}.png", media_type=PNG, data=data, pixel_digest=pixel_digest_of_frames(item.frames))


def encode_png(image: Any, text: dict[str, str]) -> bytes:
    """A PIL image as PNG, with `text` in its text chunks (tEXt for ASCII, else iTXt in UTF-8)."""
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    for key, value in text.items():
        if value.isascii():
            info.add_text(key, value)
        else:
            info.add_itxt(key, value)
    out = io.BytesIO()
    # Level 6 is zlib's own balance; pixels of diffusion models hardly compress further.
    image.convert("RGB").save(out, format="PNG", pnginfo=info, compress_level=6)
    return out.getvalue()


def encode_mp4(frames: Sequence[Any], *, fps: int, text: dict[str, str]) -> bytes:
    """PIL frames of one even size as H.264 in MP4, with `text` as JSON in the container's comment.

    EngineError(EXECUTION_FAILED) if the encoder refuses, FieldError for an odd size, which 4:2:0 colour cannot hold.
    """
    import av

    width, height = frames[0].size
    if width % 2 or height % 2:
        raise FieldError("shape", f"{width}x{height}", "even width and height: H.264 halves the colour planes")
    out = io.BytesIO()
    try:
        with av.open(out, mode="w", format="mp4", options={"fflags": "+bitexact"}) as container:
            container.metadata["comment"] = json.dumps(text, ensure_ascii=False)
            stream = container.add_stream("libx264", rate=fps)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            # One thread: the rate control of several depends on who is faster. No macroblock tree: on frames as small as
            # 64x64 x264's reads memory that nobody wrote, and one film in three came out different.
            stream.thread_count = 1
            stream.options = {"crf": _CRF, "preset": "medium", "threads": "1", "x264-params": "mbtree=0"}
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_image(frame)))
            container.mux(stream.encode(None))
    except (av.FFmpegError, ValueError) as error:
        raise EngineError(FailureKind.EXECUTION_FAILED, f"cannot encode the video: {error}") from error
    return out.getvalue()


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that Atoll wrote into a PNG or MP4; FieldError if the file is neither or carries none."""
    try:
        text = _png_text(path) if _is_png(path) else _mp4_text(path)
    except (OSError, ValueError) as error:
        raise FieldError("file", str(path), f"a PNG or MP4 made by Atoll ({error})") from None
    if not text or not all(isinstance(key, str) and isinstance(value, str) for key, value in text.items()):
        raise FieldError("file", str(path), "a PNG or MP4 made by Atoll, with its metadata")
    return text


def pixel_digest(source: Path | Sequence[Any]) -> str:
    """'sha256:<hex>' over size and raw RGB pixels: of the decoded file, or of PIL frames as they are."""
    if not isinstance(source, Path):
        return pixel_digest_of_frames(source)
    if not _is_png(source):
        return pixel_digest_of_frames(_decode_mp4(str(source)))
    from PIL import Image

    with Image.open(source, formats=["PNG"]) as image:
        return pixel_digest_of_frames([image])


def pixel_digest_of_mp4(frames: Sequence[Any], *, fps: int) -> str:
    """The digest that `frames` have after Atoll's own encoding to MP4: what a verifier compares with a stored video."""
    return pixel_digest_of_frames(_decode_mp4(io.BytesIO(encode_mp4(frames, fps=fps, text={}))))


def pixel_digest_of_frames(frames: Iterable[Any]) -> str:
    """'sha256:<hex>' over each frame's size and RGB bytes, in order."""
    digest = hashlib.sha256()
    for frame in frames:
        rgb = frame.convert("RGB")
        digest.update(f"{rgb.width}x{rgb.height}\n".encode())
        digest.update(rgb.tobytes())
    return "sha256:" + digest.hexdigest()


def _decode_mp4(source: Any) -> Iterable[Any]:
    import av

    with av.open(source, mode="r", format="mp4") as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        for frame in container.decode(stream):
            yield frame.to_image()


def _is_png(path: Path) -> bool:
    with path.open("rb") as source:
        return source.read(8) == b"\x89PNG\r\n\x1a\n"


def _png_text(path: Path) -> dict[str, str]:
    from PIL import Image

    with Image.open(path, formats=["PNG"]) as image:
        image.load()
        text: dict[str, str] = getattr(image, "text", {})
        return {str(key): str(value) for key, value in text.items() if len(value) <= _TEXT_BYTES_MAX}


def _mp4_text(path: Path) -> dict[str, str]:
    import av

    with av.open(str(path), mode="r", format="mp4") as container:
        comment = container.metadata.get("comment", "")
    value = json.loads(comment[:_TEXT_BYTES_MAX])
    return value if isinstance(value, dict) else {}
