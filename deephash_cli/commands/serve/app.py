"""The web application: a page, and the HTTP interface that the page itself uses."""

import contextlib
import errno
import io
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, HTTPException, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as AnyHTTPException

from deephash_cli import __version__
from deephash_cli.commands.serve.connections import Limits
from deephash_cli.commands.serve.guard import Guard
from deephash_cli.commands.serve.memory import give_memory_back
from deephash_cli.console import warn
from deephash_cli.data.decoding import decode
from deephash_cli.errors import DataError, DeephashError
from deephash_cli.inference.searcher import Hit, Searcher

_HERE = Path(__file__).resolve().parent
_MOST = 100  # largest number of images that a search can return, unless the default is larger
_CHOICES = (5, 10, 20, 50, 100)  # numbers of images that the page offers
_THUMBNAIL = 256  # longer side, in pixels
_SMALL = 64  # pictures up to this size, in pixels, are sent without loss, because each pixel is visible


class Query(BaseModel):
    """The image as it was read: upright, before it is scaled for the network."""

    width: int
    height: int


class Neighbour(BaseModel):
    """An image of the database."""

    id: str = Field(description="its name in the database")
    distance: int = Field(description="bits in which its code differs from the query's")
    score: float | None = Field(
        description="inner product of the query's continuous code with its code as -1 and +1; null without rescoring"
    )
    labels: list[str] = Field(description="its classes; empty if it has none")
    position: int = Field(description="its row in the database, from 0")
    image: str = Field(description="address of a small picture of it")


class Answer(BaseModel):
    """The nearest images, sorted by distance; images at the same distance are in the order of the database.

    With rescoring, those with the largest scores, sorted by score; equal scores are in the order of distance.
    """

    query: Query
    bits: int = Field(description="code length, which is also the largest possible distance")
    database: int = Field(description="number of images searched")
    shortlist: int | None = Field(
        description="number of nearest images that got a score, by which they are sorted; null without rescoring"
    )
    results: list[Neighbour]


class Info(BaseModel):
    """The database that is searched, and the limits of a search."""

    title: str
    bits: int
    database: int
    classes: list[str]
    k: int = Field(description="number of images that a search returns by default")
    shortlist: int | None = Field(
        description="number of nearest images that get a score, by which they are sorted; null without rescoring"
    )
    max_k: int
    max_bytes: int = Field(description="largest size of a request, in bytes")
    version: str = Field(description="version of deephash")


class Error(BaseModel):
    """The reason why a request failed."""

    error: str = Field(description="one sentence: what was expected, what was got, what to do")


def create_app(searcher: Searcher, k: int, limits: Limits) -> FastAPI:
    """Make the application: the page at ``/``, the interface under ``/api``, its description at ``/docs``.

    The description for programs is at ``/openapi.json``.

    Args:
        searcher: Searcher that answers the requests.
        k: Number of images that a search returns by default.
        limits: What a client can take up.
    """
    most = min(searcher.n, max(k, _MOST), searcher.shortlist or searcher.n)
    k = min(k, most)
    info = _info(searcher, k, most, limits.max_bytes)
    # No docs_url: FastAPI's own page would load its scripts from another server.
    app = FastAPI(title="deephash serve", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, max_bytes=limits.max_bytes, body_seconds=limits.body_seconds)
    app.state.is_stopping = False
    lock = threading.Lock()

    @contextlib.contextmanager
    def one_at_a_time() -> Iterator[None]:
        """Let one network work at a time, and hold one decoded picture, of which a large one takes some 700 MB."""
        with lock:
            if app.state.is_stopping:
                raise HTTPException(503, "the server is stopping: start it again with deephash serve")
            yield

    # Functions without async run on threads: the server continues to answer while the network works.
    @app.post(
        "/api/search",
        summary="Find the images nearest to an image",
        response_description="The nearest images",
        responses=_errors(400, 403, 408, 413, 415, 422, 503, 507),
    )
    def search(
        image: Annotated[bytes, File(description="a JPEG, PNG, WebP, BMP, GIF, AVIF or TIFF file")],
        k: Annotated[int, Form(ge=1, le=most, description="how many images to return")] = k,
    ) -> Answer:
        with one_at_a_time():
            size, hits = _find(searcher, image, k)
            give_memory_back(size[0] * size[1])
        return Answer(
            query=Query(width=size[0], height=size[1]),
            bits=searcher.bits,
            database=searcher.n,
            shortlist=searcher.shortlist,
            results=[_neighbour(hit) for hit in hits],
        )

    @app.get(
        "/api/image/{position}",
        summary="Get a small picture of an image in the database",
        response_class=Response,
        responses={200: {"content": {"image/webp": {}}, "description": "The picture"}, **_errors(404, 422, 503)},
    )
    def image(
        position: Annotated[int, InPath(ge=0, le=searcher.n - 1, description="its row in the database")],
    ) -> Response:
        with one_at_a_time():
            pixels, small = _small_picture(searcher, position)
            give_memory_back(pixels)
        if small is None:
            raise HTTPException(404, f"the picture of image {position} is not available; only its code is")
        return Response(small, media_type="image/webp")

    @app.get("/api/info", summary="Describe the database and the limits of a search", response_description="Both")
    def tell() -> Info:
        return info

    _add_pages(app, info)
    _add_errors(app)
    return app


def _neighbour(hit: Hit) -> Neighbour:
    return Neighbour(
        id=hit.id,
        distance=hit.distance,
        score=hit.score,
        labels=hit.labels,
        position=hit.position,
        image=f"/api/image/{hit.position}",
    )


def _find(searcher: Searcher, image: bytes, k: int) -> tuple[tuple[int, int], list[Hit]]:
    """Return the size of an uploaded image, and what is nearest to it. Only this function holds the picture.

    Raises:
        HTTPException: If the file is not an image that can be read.
    """
    try:
        picture = decode(image)
    except DataError as error:
        raise HTTPException(415, str(error)) from error
    return picture.size, searcher.find(picture, k)


def _small_picture(searcher: Searcher, position: int) -> tuple[int, bytes | None]:
    """Return the number of pixels of an image of the database, and a small WebP of it; None if there is no picture."""
    picture = searcher.picture(searcher.database.ids[position])
    return (0, None) if picture is None else (picture.width * picture.height, _thumbnail(picture))


def _info(searcher: Searcher, k: int, most: int, max_bytes: int) -> Info:
    return Info(
        title=searcher.title,
        bits=searcher.bits,
        database=searcher.n,
        classes=list(searcher.class_names),
        k=k,
        shortlist=searcher.shortlist,
        max_k=most,
        max_bytes=max_bytes,
        version=__version__,
    )


def _add_pages(app: FastAPI, info: Info) -> None:
    """Add the pages for people: the search page and the description of the interface."""
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    choices = sorted({info.k, *(choice for choice in _CHOICES if choice <= info.max_k)})
    files = {
        "/": ("text/html", environment.get_template("page.html").render(info=info, choices=choices)),
        "/page.css": ("text/css", (_HERE / "page.css").read_text(encoding="utf-8")),
        "/page.js": ("text/javascript", (_HERE / "page.js").read_text(encoding="utf-8")),
    }

    def page(request: Request) -> Response:
        kind, text = files[request.url.path]
        return Response(text, media_type=kind)

    for path in files:
        app.add_api_route(path, page, include_in_schema=False)

    @app.get("/docs", include_in_schema=False)
    def docs(request: Request) -> HTMLResponse:
        template = environment.get_template("docs.html")
        return HTMLResponse(template.render(info=info, spec=app.openapi(), address=request.base_url))


def _add_errors(app: FastAPI) -> None:
    """Answer every error, the framework's too, as JSON with one sentence that reveals nothing about this machine."""

    @app.exception_handler(AnyHTTPException)
    def refused(request: Request, error: AnyHTTPException) -> JSONResponse:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            warn(f"an upload could not be stored in {tempfile.gettempdir()}: {cause.strerror}")
            return JSONResponse({"error": "the server has no room for this upload; its terminal says where"}, 507)
        says = {
            404: "there is nothing at this address; /docs lists what there is",
            405: f"{request.method} cannot be used at this address; /docs lists what can",
        }
        # Starlette's own messages only repeat the name of the status.
        sentence = says.get(error.status_code, error.detail) if error.detail in _NAMES else error.detail
        return JSONResponse({"error": sentence}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": _sentence(error.errors()[0])}, 422)

    @app.exception_handler(DeephashError)
    def broken(_: Request, error: DeephashError) -> JSONResponse:
        warn(str(error))  # it may name files of this machine
        return JSONResponse({"error": "the server cannot answer this; its terminal says why"}, 500)

    @app.exception_handler(Exception)
    def failed(_request: Request, _error: Exception) -> JSONResponse:  # the server prints the traceback
        return JSONResponse({"error": "the server has a bug; its terminal says where"}, 500)


_NAMES = ("Not Found", "Method Not Allowed")


def _sentence(problem: Any) -> str:
    """Describe in one sentence what pydantic found wrong with a request."""
    name, got = problem["loc"][-1], problem["input"]
    if name == "image":
        return "a search needs an image file in the form's field image, got none: curl -F image=@photo.jpg"
    limits = problem.get("ctx", {})
    bound = f", at least {limits['ge']}" if "ge" in limits else f", at most {limits['le']}" if "le" in limits else ""
    return f"{name} must be a whole number{bound}, got {str(got)[:40]!r}"


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    meanings = {
        400: "The form cannot be read, or the host name in the address is not one of the server's",
        403: "The request comes from another web site",
        404: "The picture is not available",
        408: "The request did not arrive in time",
        413: "The upload is too large",
        415: "The file is not an image that can be read",
        422: "A value is missing or out of range",
        503: "Too many large uploads are waiting, or the server is stopping",
        507: "There is no room for the upload",
    }
    return {status: {"model": Error, "description": meanings[status]} for status in statuses}


def _thumbnail(picture: Image.Image) -> bytes:
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    file = io.BytesIO()
    picture.save(file, "WEBP", lossless=max(picture.size) <= _SMALL, quality=85)
    return file.getvalue()
