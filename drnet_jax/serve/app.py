"""App: the routes of the server.

    POST /predict   an image as the body, or a form with one or more; ?top=5, ?budget=2.5
    GET  /model     classes, options, costs and budgets
    PUT  /budget    {"budget": 2.5}, with a token
    GET  /healthz /readyz /metrics
    GET  /          a page to try it
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import hmac
import json
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as Http
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from drnet_jax.api import Model
from drnet_jax.config import GIGA
from drnet_jax.devices import cores
from drnet_jax.dial import Policy
from drnet_jax.errors import UserError
from drnet_jax.inference.predict import Answer, Wording, prepared
from drnet_jax.inference.records import as_json
from drnet_jax.serve.batcher import Batcher, Closed, Full
from drnet_jax.serve.governor import Governor
from drnet_jax.serve.metrics import Metrics
from drnet_jax.serve.receiving import check_pixels, images_of

PAGE = Path(__file__).parent / "page"


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a server takes, and how long it waits."""

    images: int = 256  # at once
    megabytes: float = 20  # of a request
    megapixels: float = 50  # of an image
    max_wait: float = 0.0  # seconds, for a bucket to fill
    timeout: float = 30.0  # seconds, for a request to come in, and again for its answer
    p95: float | None = None  # seconds, see `Governor`


class Service:
    """A model that answers over HTTP."""

    def __init__(self, model: Model, limits: Limits, budget: float, kind: str, token: str | None):
        """Nothing is compiled until `start`.

        Args:
            model: what answers.
            limits: of requests.
            budget: mean multiply-adds of an image; 0 for none.
            kind: of the policy, "router" or "cascade".
            token: that changes the budget; None: nobody does.
        """
        self.model, self.limits, self._kind, self._token = model, limits, kind, token
        costs = [setting.cost(model.costs.networks) for setting in self.settings] or [0.0]
        if limits.p95 is not None:  # no limit has nothing to give up
            budget = budget or costs[-1]
        self.governor = Governor(self._policy_at, budget, costs[0], limits.p95)
        self.metrics = Metrics()
        self._decoders = concurrent.futures.ThreadPoolExecutor(cores(), "decode")
        self._reading = 0  # requests whose images are not with the batcher yet
        self.ready = False
        gauge = self.metrics.gauge
        gauge("drnet_waiting", "Images that are not answered yet.", lambda: self._batcher.waiting)
        gauge("drnet_budget_multiply_adds", "Mean of an image that is in force; 0: no limit.",
              lambda: self.governor.present)
        gauge("drnet_budget_given_up", "Share of the way from the configured budget to the "
              "cheapest that load has taken.", lambda: self.governor.level)

    @property
    def settings(self) -> tuple[Any, ...]:
        """Of the dial; () where nothing is known of budgets."""
        dial = self.model.dials.get(self._kind)
        return dial.settings if dial else ()

    def _policy_at(self, budget: float) -> Policy:
        return self.model.policy(budget, kind=self._kind)

    def start(self) -> None:
        """Compiles everything, and begins to answer."""
        engine = self.model.predicting
        engine.warm_up()
        wording = Wording(engine, self.model.classes, len(self.model.classes))
        self._batcher = Batcher(wording, self.limits.images, self.limits.max_wait)
        self.ready = True

    def stop(self) -> None:
        """Answers all that was taken, and ends."""
        self.ready = False
        self._batcher.close()
        self._decoders.shutdown()

    async def predict(self, http: Http) -> Response:
        """POST /predict."""
        began, status = time.perf_counter(), 500
        try:
            top, policy = self._asked(http)
            if not self.ready:
                raise HTTPException(503, "the server is stopping, or not ready yet")
            if self._batcher.waiting + self._reading >= self.limits.images:
                raise _full()
            self._reading += 1
            try:
                async with asyncio.timeout(self.limits.timeout):
                    form, images = await images_of(http, self.limits.megabytes)
                    waiting, refused = await self._all_submitted(images, policy, form)
            except TimeoutError as error:
                raise HTTPException(408, "the request took too long to come in") from error
            finally:
                self._reading -= 1
            async with asyncio.timeout(self.limits.timeout):
                answers = {at: await asyncio.wrap_future(each) for at, each in waiting.items()}
            for answer in answers.values():
                self._count(answer, time.perf_counter() - began)
            found = sorted((answers | refused).items())
            records = [_record(answer, top) for _, answer in found]
            failed = any(answer.error is not None for answer in answers.values())
            status = 500 if failed else 200 if answers else 400
            return JSONResponse({"answers": records} if form else records[0], status)
        except HTTPException as error:
            status = error.status_code
            raise
        except TimeoutError as error:
            status = 504
            raise HTTPException(504, "the answer took too long") from error
        except ClientDisconnect:
            status = 499
            return Response(status_code=status)
        finally:
            self.metrics.requests.labels(str(status)).inc()

    def _asked(self, http: Http) -> tuple[int, Policy]:
        """How many classes, and the policy."""
        query, policy = http.query_params, self.governor.policy
        try:
            top = int(query.get("top", "1"))
            if top < 1:
                raise ValueError
        except ValueError as error:
            raise HTTPException(
                400, f"top: expected a number from 1, received {query['top']!r}"
            ) from error
        if "budget" in query:
            policy = self._policy_of(query["budget"])
        return top, policy

    def _policy_of(self, text: Any) -> Policy:
        try:
            return self._policy_at(float(text) * GIGA)
        except UserError as error:  # it is out of reach
            raise HTTPException(400, str(error)) from error
        except (TypeError, ValueError) as error:
            raise HTTPException(
                400, f"budget: expected 1e9 multiply-adds, such as 2.5, received {text!r}"
            ) from error

    async def _all_submitted(
        self, images: Sequence[tuple[str, bytes]], policy: Policy, form: bool
    ) -> tuple[dict[int, concurrent.futures.Future], dict[int, Answer]]:
        """By position what is waited for; and what is refused of a form, whose others are answered.
        """
        waiting, refused = {}, {}
        for at, (name, data) in enumerate(images):
            try:
                waiting[at] = await self._submitted(name, data, policy)
            except HTTPException as error:
                if not form or error.status_code not in (400, 413):
                    raise
                refused[at] = Answer.failed(name, str(error.__cause__ or error.detail))
        return waiting, refused

    async def _submitted(
        self, name: str, data: bytes, policy: Policy
    ) -> concurrent.futures.Future:
        loop = asyncio.get_running_loop()
        try:
            image = await loop.run_in_executor(self._decoders, self._prepared, data)
            return self._batcher.submit(image, name, policy)
        except UserError as error:
            raise HTTPException(400, f"{name}: {error}") from error
        except Full as error:
            raise _full() from error
        except Closed as error:
            raise HTTPException(503, "the server is stopping") from error

    def _prepared(self, data: bytes) -> np.ndarray:
        check_pixels(data, self.limits.megapixels)
        return prepared(data, self.model.square, self.model.resolutions[0])

    def _count(self, answer: Answer, seconds: float) -> None:
        self.metrics.latency.observe(seconds)
        self.governor.saw(seconds)
        if answer.error is None:
            option = answer.network if answer.network == "predictor" else str(answer.resolution)
            self.metrics.answers.labels(option).inc()
            self.metrics.multiply_adds.inc(answer.multiply_adds)

    async def set_budget(self, http: Http) -> Response:
        """PUT /budget."""
        if self._token is None:
            raise HTTPException(403, "the budget is fixed: the server was started without a token")
        given = http.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            raise HTTPException(401, "expected the token: Authorization: Bearer TOKEN")
        try:
            budget = json.loads(await http.body())["budget"]
        except (ValueError, KeyError, TypeError) as error:
            raise HTTPException(400, 'expected {"budget": 2.5}') from error
        self._policy_of(budget)
        self.governor.set(float(budget) * GIGA)
        return await self.about(http)

    async def about(self, http: Http) -> Response:
        """GET /model."""
        costs = self.model.costs
        return JSONResponse({
            "classes": list(self.model.classes), "options": list(costs.options),
            "base": self.model.resolutions[0], "policy": self._kind,
            "multiply_adds": {
                "classifier": dict(zip(map(str, costs.resolutions), costs.classifier, strict=True)),
                "predictor": costs.predictor,
            },
            "budget": self.governor.budget / GIGA, "in_force": self.governor.present / GIGA,
            "budgets": [
                {"budget": setting.cost(self.model.costs.networks) / GIGA, "top1": setting.top1}
                for setting in self.settings
            ],
            "runtime": self.model.runtime.name,
        })

    async def metrics_text(self, http: Http) -> Response:
        """GET /metrics."""
        text, kind = self.metrics.text()
        return Response(text, media_type=kind)

    async def healthy(self, http: Http) -> Response:
        """GET /healthz."""
        return JSONResponse({"status": "alive"})

    async def readiness(self, http: Http) -> Response:
        """GET /readyz."""
        return JSONResponse({"ready": self.ready}, 200 if self.ready else 503)


def _full() -> HTTPException:
    return HTTPException(429, "as many images wait as may; try again", {"Retry-After": "1"})


def _record(answer: Answer, top: int) -> dict[str, Any]:
    return as_json(dataclasses.replace(answer, top=answer.top and answer.top[:top]))


async def _told(http: Http, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def make_app(service: Service) -> Starlette:
    """The application; its start-up compiles, and its end answers all that was taken."""
    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await asyncio.to_thread(service.start)
        yield
        await asyncio.to_thread(service.stop)

    return Starlette(
        routes=[
            Route("/predict", service.predict, methods=["POST"]),
            Route("/budget", service.set_budget, methods=["PUT"]),
            Route("/model", service.about),
            Route("/healthz", service.healthy),
            Route("/readyz", service.readiness),
            Route("/metrics", service.metrics_text),
            Route("/", FileResponse(PAGE / "index.html")),
            *(Route(f"/{name}", FileResponse(PAGE / name)) for name in ("page.css", "page.js")),
        ],
        exception_handlers={HTTPException: _told},
        lifespan=lifespan,
    )
