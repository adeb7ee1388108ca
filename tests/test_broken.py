"""A thousand broken images: each a record or a refusal, none a crash, a hang or lost memory."""

import contextlib
import http.client
import json
import re

import psutil
import pytest

from drnet_jax.inference.predict import Named
from tests import runs, serving
from tests.broken import thousand

# What decoding one image may take at most, twice: of the image itself, and of its copy resized.
MEGABYTES = 2 * 3 * (1 << 27) / 1e6


@pytest.fixture(scope="module")
def broken():
    found = thousand()
    assert len({name for name, _ in found}) == len(found) == 1000
    return found


def test_from_python(evaluated, broken):
    model = serving.model_of(evaluated)
    before = psutil.Process().memory_info().rss
    answers = list(model.predict((Named(*each) for each in broken), skip_errors=True))
    assert [answer.image for answer in answers] == [name for name, _ in broken]
    failed = [answer for answer in answers if answer.error]
    assert all((answer.label is None) == (answer.error is not None) for answer in answers)
    assert all(re.match(re.escape(answer.image) + ": expected a whole image", answer.error)
               for answer in failed)
    by_name = {answer.image: answer for answer in answers}
    assert by_name["1x1.png"].label and by_name["wide.png"].label and by_name["cmyk.jpg"].label
    assert all(by_name[f"{size}.png"].error for size in (30_000, 65_535, 2**31 - 1))
    assert 100 < len(failed) < 990
    assert psutil.Process().memory_info().rss - before < 1e6 * MEGABYTES


def test_from_the_command_line(evaluated, broken, tmp_path, capsys):
    folder = tmp_path / "broken"
    folder.mkdir()
    for name, data in broken:
        (folder / name).write_bytes(data)
    paths = [str(folder / name) for name, _ in broken]
    assert runs.call("predict", "--workdir", str(evaluated), *paths) == 0
    out, err = capsys.readouterr()
    records = list(map(json.loads, out.splitlines()))
    assert [record["image"] for record in records] == paths
    failed = sum("error" in record for record in records)
    assert f"warning: {failed} of 1000 images could not be read" in err


def test_over_http(server, broken):
    before = psutil.Process(server.process.pid).memory_info().rss
    statuses = {}
    with contextlib.closing(http.client.HTTPConnection(*server.address, timeout=60)) as connection:
        for name, data in broken:
            connection.request("POST", "/predict", data)
            response = connection.getresponse()
            body = json.loads(response.read())
            statuses[name] = response.status
            assert response.status in (200, 400, 413), (name, response.status, body)
            assert ("error" in body) == (response.status != 200)
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
    assert statuses["1x1.png"] == statuses["cmyk.jpg"] == 200
    assert statuses["30000.png"] == statuses["60000.bmp"] == 413
    assert statuses["empty.jpg"] == statuses["zeros.png"] == 400
    assert psutil.Process(server.process.pid).memory_info().rss - before < 1e6 * MEGABYTES
