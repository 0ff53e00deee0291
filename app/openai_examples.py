"""What the OpenAPI document shows of the addresses below /v1, made from the real types."""

from app.examples import PROBLEMS
from app.openai_errors import OpenAIFailure, failure_of
from app.openai_images import ImageData, ImagesAnswer, ImagesRequest, ModelInfo, ModelList
from app.openai_stream import CompletedImage, PartialImage, event_text
from app.openapi import Responses

_PNG = "iVBORw0KGgoAAAANSUhEUg=="
_CREATED = 1767323045

IMAGES_EXAMPLES = {
    name: {"value": request.model_dump(mode="json", exclude_unset=True)}
    for name, request in {
        "a prompt": ImagesRequest(prompt="a smiling cat", model="emoji-64"),
        "a stream": ImagesRequest(prompt="a red apple", stream=True, partial_images=2),
        "all choices": ImagesRequest(
            prompt="a red apple",
            model="emoji-64",
            n=2,
            size="64x64",
            background="transparent",
            output_format="webp",
            response_format="url",
            style="noto",
            seed=7,
            num_steps=24,
        ),
    }.items()
}
IMAGES_ANSWER = ImagesAnswer(
    created=_CREATED,
    data=[ImageData(b64_json=_PNG)],
    background="opaque",
    output_format="png",
    size="64x64",
    model="emoji-64",
    seed=7,
)
IMAGES_EVENTS = event_text(
    PartialImage(
        b64_json="UklGRiIAAABXRUJQ",
        partial_image_index=0,
        index=0,
        created_at=_CREATED,
        output_format="webp",
        size="64x64",
    )
) + event_text(
    CompletedImage(
        b64_json=_PNG,
        index=0,
        created_at=_CREATED,
        background="opaque",
        output_format="png",
        size="64x64",
        model="emoji-64",
        seed=7,
    )
)
MODELS = ModelList(data=[ModelInfo(id="emoji-64", created=_CREATED)])


_REFUSALS = [
    (problem.status, problem.code, problem.detail, None)
    for problem in (PROBLEMS["unauthorized"], PROBLEMS["forbidden"])
]


def openai_failures(*examples: tuple[int, str, str, str | None]) -> Responses:
    """Describe failures: each of (status, code, message, param); and any other, of the same shape."""
    found: Responses = {
        status: {
            "model": OpenAIFailure,
            "description": message,
            "content": {
                "application/json": {"example": failure_of(status, code, message, param).model_dump()}
            },
        }
        for status, code, message, param in (*_REFUSALS, *examples)
    }
    other = failure_of(500, "internal_error", "The server's log says more.").model_dump()
    found["default"] = {
        "model": OpenAIFailure,
        "description": "Any other failure.",
        "content": {"application/json": {"example": other}},
    }
    return found
