"""What a request says: JSON of a bounded size, in time, with every field accounted for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import ClientDisconnect, Request

from ditto.files import parse_json
from ditto.serve.errors import Refused
from ditto.serve.leaving import Gone

LARGEST = 4 << 20  # bytes of a body
SLOWEST = 30.0  # seconds from its first byte to its last
TEXTS = 2048  # of one request

Form = TypeVar("Form", bound=BaseModel)


class Fields(BaseModel):
    """What a route takes; types are not converted into each other."""

    model_config = ConfigDict(strict=True, extra="forbid")


async def read(request: Request) -> dict[str, Any]:
    """The document. Raises Refused: no JSON, too large, too slow; Gone."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # what a page of another origin can send without asking first is another type
        raise Refused("content-type: application/json expected", 415)
    if int(request.headers.get("content-length", 0)) > LARGEST:  # h11 has checked that it is a number
        raise _too_large()
    data = bytearray()
    try:
        async with asyncio.timeout(SLOWEST):
            async for piece in request.stream():
                data += piece
                if len(data) > LARGEST:
                    raise _too_large()
    except TimeoutError:
        raise Refused(f"the body took more than {SLOWEST:g} s", 408) from None
    except ClientDisconnect:
        raise Gone from None
    try:
        document = parse_json(bytes(data))
        if b"\\ud" in data.lower():  # half of a character is a text to JSON, and to nothing else
            json.dumps(document, ensure_ascii=False).encode()
    except ValueError:  # its message may quote the text
        raise Refused("the body is no JSON in UTF-8") from None
    if not isinstance(document, dict):
        raise Refused("a JSON object expected")
    return document


def _too_large() -> Refused:
    return Refused(f"the body is larger than {LARGEST >> 20} MiB: send fewer texts at once", 413)


def fields(
    form: type[Form], document: Mapping[str, Any], *, neutral: Mapping[str, Any] | None = None,
    ignored: Collection[str] = (),
) -> Form:  # fmt: skip
    """A document as `form`. null is as good as absent.

    `ignored` are fields that no answer depends on. `neutral` are those that would change the answer in ways that are
    not there: they may have this one value. Raises Refused for any other value, and for a field that is not known.
    """
    given = {key: value for key, value in document.items() if value is not None and key not in ignored}
    for key, value in (neutral or {}).items():
        if key in given and given.pop(key) != value:
            raise Refused(f"{key}: not supported, except {value!r}", code="unsupported_parameter", param=key)
    try:
        return form.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "extra_forbidden":
            raise Refused(f"{where[:64]}: not supported", code="unsupported_parameter", param=where[:64]) from None
        if first["type"] == "missing":
            raise Refused(f"{where} is missing", code="missing_required_parameter", param=where) from None
        raise Refused(f"{where}: {first['msg']}", code="invalid_value", param=where) from None


def texts_of(value: Any, field: str) -> list[str]:
    """One text, or a list of texts. Raises Refused."""
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, list) and any(isinstance(text, int | list) for text in texts):
        raise Refused(
            f"{field}: token ids are not taken, they may be another tokenizer's: send texts "
            "(LangChain: check_embedding_ctx_length=False)", code="invalid_type", param=field,
        )  # fmt: skip
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refused(f"{field}: a text or a list of texts expected", code="invalid_type", param=field)
    return counted(texts, field)


def counted(texts: list[Any], field: str, most: int = TEXTS) -> list[Any]:
    """Raises Refused for none or too many."""
    if not 1 <= len(texts) <= most:
        raise Refused(f"{field}: {len(texts)} texts; 1 to {most} expected", code="invalid_value", param=field)
    return texts
