"""Where there is land, coarsely: the ground that a map of a fleet stands on, without fetching a map from anywhere.

Decides nothing but that. One bit for each cell of two by two degrees from 80 degrees north to 60 south, set where at least half of it is
land by the public-domain elevation model GLOBE of NOAA.
"""

from __future__ import annotations

import base64
import zlib
from typing import Final

_TOP_DEG: Final = 80
_STEP_DEG: Final = 2
_COLUMNS: Final = 180
_CELLS: Final = (
    "eNqlUz1v1EAQnb2NsIsLvoIixSnrH0BxHaniyy/gJ5COhoLSBTqvaPgRFPkp2SAkGiRER3eLEKQ8o0SKI/k87Mx++E66ji18e2+fZ9+8NwZwS3WICNDRfgFp"
    "nSvEFia8v4zgsjAZkQEkSLRCM9p9bKBCy4QLxH7qNjMQ/Yte4EDo0bG7YrPVULjf3z9ahdq9DsUaeVl+fvjpUGh63Hr0TtHze12YUyiuKwwL6NFKXTsNtxFE"
    "S+RBWOlKrJoA3rVQZ3S2dBqyXwHVpfvnymmSdvI8kO1TEuo2Vy3A5H3h0R6oK1fjEQ3Am1i4ow6phiMArKMIugYEnV/yS37ds0dU0JWAWGLwhoZd9tD5AxPJ"
    "hMq/V9Lft4xkOj8/CiXySKbsMnPsucaH0viczkrfyp8Zo5JCdSIHFoT9Sy9DcSNQtewu3kBUp7n9za5kkBwwXcBJ2QC/0kuuhJvbYIwfjmDK0JAzOqAZk52D"
    "D1h4SbzqC68Rr23zLaHy68STHwfZrtKEFiaQ1/o0a8sEh2y2Vhg1SexFIHcwF3VCRRaCXICR4/Dn6IMcIBeQJ1h1PkgLZQ461SD9ZUMtT270SKZmBbf87Cyh"
    "ksNS9Ir4MpL58/Ffy7TORzIFrjj112UXYR8tWzwBYUcyyyPyHNQog8hNyGOWNJOCLMzbaCkrwJ7NnC8hzYGls0+c3OdRHRXFzvJA2fFCQ2T+ntQwmkTkxhq+"
    "pdszKcMpRKsCmT8Vq8fRZHLP0xf0j30TrTK+XLqw4jnvgn6TyEzzzWapcrXrg0pD2u96kzSv9j17Esh2F5zF8Xi3iwo4ieO/VyJOXg2HVnEQhbcH0ewweQb/"
    "sf4BBfPYFQ=="
)


def land_points() -> list[tuple[int, int]]:
    """Longitude and latitude of the middle of every cell of land, in degrees."""
    bits = zlib.decompress(base64.b64decode(_CELLS))
    cells = (index for index in range(len(bits) * 8) if bits[index // 8] >> (7 - index % 8) & 1)
    return [
        (index % _COLUMNS * _STEP_DEG - 180 + _STEP_DEG // 2, _TOP_DEG - index // _COLUMNS * _STEP_DEG - _STEP_DEG // 2) for index in cells
    ]
