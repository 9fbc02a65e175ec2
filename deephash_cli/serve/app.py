"""The application: a page, and the interface that the page itself uses."""

import io
import threading
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
from deephash_cli.console import warn
from deephash_cli.data.dataset import decode
from deephash_cli.errors import DataError, DeephashError
from deephash_cli.search import Searcher
from deephash_cli.serve.guard import Guard

_HERE = Path(__file__).resolve().parent
_MOST = 100  # that can be asked for at once
_CHOICES = (5, 10, 20, 50, 100)  # of the page
_THUMBNAIL = 256  # longer side, in pixels
_SMALL = 64  # a picture of this size is sent without loss: every pixel of it will be seen


class Query(BaseModel):
    """The image as it was read: upright, before the network's own scaling."""

    width: int
    height: int


class Neighbour(BaseModel):
    """An image of the database."""

    id: str = Field(description="its name in the database")
    distance: int = Field(description="bits in which its code differs from the query's")
    labels: list[str] = Field(description="its classes; empty where it has none")
    position: int = Field(description="its row in the database, from 0")
    image: str = Field(description="the address of a small picture of it")


class Answer(BaseModel):
    """The nearest images, by distance; at equal distance in the order of the database."""

    query: Query
    bits: int = Field(description="code length: the largest distance that there can be")
    database: int = Field(description="number of images searched")
    results: list[Neighbour]


class Info(BaseModel):
    """What is searched."""

    title: str
    bits: int
    database: int
    classes: list[str]
    k: int = Field(description="how many a search returns if it does not say")
    max_k: int
    max_bytes: int = Field(description="the most bytes that a search may bring")
    version: str = Field(description="of deephash")


class Error(BaseModel):
    """Why there is no answer."""

    error: str = Field(description="one sentence: what was expected, what was got, what to do")


def create_app(searcher: Searcher, k: int, max_bytes: int) -> FastAPI:
    """The page at ``/``, the interface under ``/api``, and its description at ``/docs`` and ``/openapi.json``.

    Args:
        searcher: What answers.
        k: How many images a search returns if it does not say.
        max_bytes: The most that a request may bring.
    """
    most = min(searcher.n, max(k, _MOST))
    k = min(k, most)
    info = Info(
        title=searcher.title,
        bits=searcher.bits,
        database=searcher.n,
        classes=list(searcher.class_names),
        k=k,
        max_k=most,
        max_bytes=max_bytes,
        version=__version__,
    )
    one_at_a_time = threading.Lock()  # one network, and one picture of up to a quarter of a GiB in memory
    # No docs_url: that page would load its scripts from another server.
    app = FastAPI(title="deephash serve", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, max_bytes=max_bytes)

    # Functions that wait for nothing else are run on threads: the server goes on answering while the network works.
    @app.post(
        "/api/search",
        summary="The nearest images of an image",
        response_description="What was found",
        responses=_errors(400, 403, 413, 415, 422),
    )
    def search(
        image: Annotated[bytes, File(description="a JPEG, PNG, WEBP, BMP or GIF file")],
        k: Annotated[int, Form(ge=1, le=most, description="how many images to return")] = k,
    ) -> Answer:
        with one_at_a_time:
            try:
                picture = decode(image)
            except DataError as error:
                raise HTTPException(415, str(error)) from error
            hits = searcher.find(picture, k)
        return Answer(
            query=Query(width=picture.width, height=picture.height),
            bits=searcher.bits,
            database=searcher.n,
            results=[
                Neighbour(
                    id=hit.id,
                    distance=hit.distance,
                    labels=hit.labels,
                    position=hit.position,
                    image=f"/api/image/{hit.position}",
                )
                for hit in hits
            ],
        )

    @app.get(
        "/api/image/{position}",
        summary="A small picture of an image of the database",
        response_class=Response,
        responses={200: {"content": {"image/webp": {}}, "description": "The picture"}, **_errors(404, 422)},
    )
    def image(
        position: Annotated[int, InPath(ge=0, le=searcher.n - 1, description="its row in the database")],
    ) -> Response:
        with one_at_a_time:
            picture = searcher.picture(searcher.database.ids[position])
        if picture is None:
            raise HTTPException(404, f"the picture of image {position} is not on this machine, only its code")
        return Response(_thumbnail(picture), media_type="image/webp")

    @app.get("/api/info", summary="What is searched, and the limits of a search", response_description="Both")
    def tell() -> Info:
        return info

    _add_pages(app, info)
    _add_errors(app)
    return app


def _add_pages(app: FastAPI, info: Info) -> None:
    """What a person sees."""
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
    """Every error is JSON with one sentence, also those of the framework; nothing in it is about this machine."""

    @app.exception_handler(AnyHTTPException)
    def refused(request: Request, error: AnyHTTPException) -> JSONResponse:
        says = {
            404: "there is nothing at this address; /docs lists what there is",
            405: f"{request.method} cannot be used at this address; /docs lists what can",
        }
        # Starlette's own say no more than the name of the status.
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
    """What pydantic found wrong with a request."""
    name, got = problem["loc"][-1], problem["input"]
    if name == "image":
        return "a search needs an image file in the form's field image, got none: curl -F image=@photo.jpg"
    limits = problem.get("ctx", {})
    bound = f", at least {limits['ge']}" if "ge" in limits else f", at most {limits['le']}" if "le" in limits else ""
    return f"{name} must be a whole number{bound}, got {str(got)[:40]!r}"


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    meanings = {
        400: "The form cannot be read, or the address is none of the server's own",
        403: "Another web site asked",
        404: "The picture is not on this machine",
        413: "The upload is too large",
        415: "The file is no image that can be read",
        422: "A value is missing or out of range",
    }
    return {status: {"model": Error, "description": meanings[status]} for status in statuses}


def _thumbnail(picture: Image.Image) -> bytes:
    small = picture.copy()
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "WEBP", lossless=max(small.size) <= _SMALL, quality=85)
    return file.getvalue()
