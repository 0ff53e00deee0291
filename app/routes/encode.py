"""POST /encode."""

import asyncio
import base64
import binascii
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from app.answers import answer
from app.bodies import encode_body, request_body
from app.openapi import (
    ENCODE_EXAMPLES,
    ENCODED_JOB,
    PREFER,
    WORK_FAILURES,
    job_responses,
    problems,
)
from app.services import Services, ServicesNeeded
from models.config import TokenizerConfig
from workers.errors import InvalidImage
from workers.images import encode_image, load_image
from workers.messages import EncodeRequest

router = APIRouter(tags=["work"])

_FORM: dict[str, Any] = {
    "type": "object",
    "required": ["file"],
    "additionalProperties": False,
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "A PNG, JPEG or WebP file."},
        **{
            name: schema
            for name, schema in EncodeRequest.model_json_schema()["properties"].items()
            if name != "image"
        },
    },
}


@router.post(
    "/encode",
    operation_id="encode",
    summary="Turn an image into codes",
    responses=job_responses(ENCODED_JOB, has_image=False)
    | problems(*WORK_FAILURES, "invalid_image", "bad_request"),
    openapi_extra=request_body(EncodeRequest, ENCODE_EXAMPLES, form=_FORM) | {"parameters": [PREFER]},
)
async def encode(
    http: HttpRequest, request: Annotated[EncodeRequest, Depends(encode_body)], services: ServicesNeeded
) -> Response:
    """Queue the request. The image is cut to its centred square and resized to the pipeline's size."""
    return await answer(http, await _fit(request, services), services)


async def _fit(request: EncodeRequest, services: Services) -> EncodeRequest:
    """Return the request with its image as the pipeline wants it: checked, and small enough for a queue.

    Raises: UnknownPipeline, InvalidImage.
    """
    tokenizer = services.catalog.config(request.pipeline).tokenizer
    async with services.image_slots:
        image = await asyncio.to_thread(_fit_image, request.image, tokenizer)
    return request.model_copy(update={"image": image})


def _fit_image(image: str, tokenizer: TokenizerConfig) -> str:
    try:
        data = base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidImage(
            "image: is no base64; send the file's bytes in base64, without line breaks or 'data:...;base64,'"
        ) from None
    pixels = load_image(data, tokenizer.image_size_px, tokenizer.image_channels)
    return min(base64.b64encode(encode_image(pixels, "png")).decode(), image, key=len)
