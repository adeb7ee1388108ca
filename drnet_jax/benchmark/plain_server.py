"""Plain server: what one would write first, one image at a time at the base size; to compare with.

    python -m drnet_jax.benchmark.plain_server '{"path": "runs/demo", "runtime": "jax"}'

The arguments are those of `drnet_jax.load`. It listens on a port of its own choice and prints it.
"""

import json
import sys
import threading
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from drnet_jax.api import Model, load
from drnet_jax.inference.predict import Wording, prepared
from drnet_jax.inference.records import as_json
from drnet_jax.routing import Cascade
from drnet_jax.serve.run import announce, listen


def make_app(model: Model) -> Starlette:
    """POST /predict, of an image as the body."""
    engine, base = model.predicting, Cascade((0,), "margin", 0.0)
    wording, one_at_a_time = Wording(engine, model.classes), threading.Lock()

    def classified(data: bytes) -> dict[str, Any]:
        image = prepared(data, model.square, model.resolutions[0])
        with one_at_a_time:
            log_p = np.asarray(engine.classify(0, engine.upload(image[None])))[0]
        return as_json(wording.answer("image", 0, log_p, None, base))

    async def predict(request: Request) -> JSONResponse:
        return JSONResponse(await run_in_threadpool(classified, await request.body()))

    return Starlette(routes=[Route("/predict", predict, methods=["POST"])])


def main(argument: str) -> None:
    model = load(**json.loads(argument)).like(batch_size=1)
    model.predicting.warm_up()
    listening = listen(("127.0.0.1", 0))
    announce(listening, "one image at a time")
    config = uvicorn.Config(make_app(model), log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main(sys.argv[1])
