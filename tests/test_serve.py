"""The server, over loopback, against what the same model says in Python."""

import concurrent.futures
import contextlib
import http.client
import json
import signal
import threading
import time
from pathlib import Path

import pytest

from tests import runs, serving


@pytest.fixture(scope="module")
def model(evaluated):
    return serving.model_of(evaluated)


@pytest.fixture(scope="module")
def paths(evaluated):
    lines = (evaluated / "predictions.csv").read_text().splitlines()[1:]
    return [Path(line.split(",")[0]) for line in lines]


@pytest.fixture(scope="module")
def expected(model, paths):
    return {answer.image: answer for answer in model.predict(map(str, paths), top=3)}


def ask(server, method, path, body=None, **headers):
    """Status, body (of JSON what it says) and headers."""
    connection = http.client.HTTPConnection(*server.address, timeout=60)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        text, kind = response.read(), response.getheader("content-type", "")
        return response.status, json.loads(text) if "json" in kind else text, response.headers
    finally:
        connection.close()


def post(server, path, query=""):
    return ask(server, "POST", f"/predict{query}", path.read_bytes())[:2]


def form(files):
    """A multipart body of (name, bytes), and its content type."""
    boundary = "a-line-that-is-in-no-file"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        "Content-Type: image/png\r\n\r\n".encode() + data + b"\r\n" for name, data in files]
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), (
        f"multipart/form-data; boundary={boundary}")


def assert_same(record, answer):
    assert record["label"] == answer.label and record["network"] == answer.network
    assert (record["resolution"], record["multiply_adds"]) == (
        answer.resolution, answer.multiply_adds)
    assert record["probability"] == pytest.approx(answer.probability, rel=2e-4, abs=1e-6)


def test_an_image_as_the_body(server, paths, expected):
    for path in paths[:4]:
        status, record = post(server, path, "?top=2")
        assert (status, record["image"], len(record["top"])) == (200, "image", 2)
        assert_same(record, expected[str(path)])
        assert record["options"].keys() == {"32", "24", "16", "predictor"}


def test_images_in_a_form(server, paths, expected):
    body, kind = form([(path.name, path.read_bytes()) for path in paths[:3]])
    status, found, _ = ask(server, "POST", "/predict", body, **{"Content-Type": kind})
    assert status == 200 and [each["image"] for each in found["answers"]] == [
        path.name for path in paths[:3]]
    for record, path in zip(found["answers"], paths, strict=False):
        assert_same(record, expected[str(path)])


def test_what_is_no_image_in_a_form_is_told_and_the_others_are_answered(server, paths, expected):
    body, kind = form([("a.png", b"no image"), (paths[0].name, paths[0].read_bytes())])
    status, found, _ = ask(server, "POST", "/predict", body, **{"Content-Type": kind})
    refused, answered = found["answers"]
    assert status == 200 and refused["image"] == "a.png" and "expected" in refused["error"]
    assert_same(answered, expected[str(paths[0])])
    body, kind = form([("a.png", b"no image")])
    status, found, _ = ask(server, "POST", "/predict", body, **{"Content-Type": kind})
    assert status == 400 and [each["image"] for each in found["answers"]] == ["a.png"]


def test_a_budget_of_ones_own(server, model, paths):
    costs = model.costs.routed / 1e9
    for budget, network in ((costs.min(), "predictor"), (costs.max(), "classifier")):
        status, record = post(server, paths[0], f"?budget={budget}")
        assert (status, record["network"]) == (200, network)


def test_what_the_model_is(server, model):
    status, about, _ = ask(server, "GET", "/model")
    assert status == 200 and about["classes"] == list(model.classes)
    assert about["options"] == list(model.costs.options) and about["base"] == 32
    assert about["budget"] == pytest.approx(model.budget / 1e9) == about["in_force"]
    least, most = about["budgets"][0], about["budgets"][-1]
    assert least["budget"] == pytest.approx(model.costs.routed.min() / 1e9)
    assert most["budget"] == pytest.approx(model.costs.routed.max() / 1e9)


def test_health_and_metrics(server, paths):
    assert ask(server, "GET", "/healthz")[:2] == (200, {"status": "alive"})
    assert ask(server, "GET", "/readyz")[:2] == (200, {"ready": True})

    def read():
        status, text, headers = ask(server, "GET", "/metrics")
        assert status == 200 and headers["content-type"].startswith("text/plain")
        lines = [line.rsplit(" ", 1) for line in text.decode().splitlines() if line[0] != "#"]
        return {name: float(value) for name, value in lines}

    before = read()
    _, record = post(server, paths[0])
    post(server, Path(__file__))
    after = read()

    def grown(name):
        return after.get(name, 0) - before.get(name, 0)

    option = "predictor" if record["network"] == "predictor" else record["resolution"]
    assert grown('drnet_requests_total{status="200"}') == 1
    assert grown('drnet_requests_total{status="400"}') == 1
    assert grown("drnet_latency_seconds_count") == 1
    assert grown(f'drnet_answers_total{{option="{option}"}}') == 1
    assert grown("drnet_multiply_adds_total") == record["multiply_adds"]
    assert after["drnet_waiting"] == after["drnet_budget_given_up"] == 0


def test_the_page_is_there(server):
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "javascript")):
        status, text, headers = ask(server, "GET", path)
        assert status == 200 and kind in headers["content-type"]
        assert b"http://" not in text and b"https://" not in text  # works without the internet


BOUNDARY = {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize(("method", "path", "body", "headers", "status", "message"), [
    ("POST", "/predict", b"", {}, 400, "image: expected a whole image"),
    ("POST", "/predict", b"text", {}, 400, "4 bytes that cannot be decoded"),
    ("POST", "/predict?top=0", b"", {}, 400, "top: expected a number from 1, received '0'"),
    ("POST", "/predict?top=x", b"", {}, 400, "top: expected a number from 1, received 'x'"),
    ("POST", "/predict?budget=x", b"", {}, 400, "budget: expected 1e9 multiply-adds, such as 2.5"),
    ("POST", "/predict?budget=9", b"", {}, 400, "G, received 9 G"),
    ("POST", "/predict?budget=nan", b"", {}, 400, "budget"),
    ("POST", "/predict", b"--x--\r\n", BOUNDARY, 400, "expected files in the form, received none"),
    ("POST", "/predict", b"--x\r\nbroken", BOUNDARY, 400, "expected"),
    ("POST", "/predict", b"", {"Content-Type": "multipart/form-data"}, 400,
     "expected a whole form"),
    ("POST", "/predict", b"0" * 20_000_001, {}, 413, "expected at most 20 MB"),
    ("GET", "/predict", None, {}, 405, "Method Not Allowed"),
    ("GET", "/nowhere", None, {}, 404, "Not Found"),
    ("PUT", "/budget", b'{"budget": 2.5}', {}, 401, "expected the token"),
    ("PUT", "/budget", b'{"budget": 2.5}', {"Authorization": "Bearer no"}, 401, "the token"),
    ("PUT", "/budget", b"{}", {"Authorization": f"Bearer {serving.TOKEN}"}, 400, "expected {"),
    ("PUT", "/budget", b'{"budget": 9}', {"Authorization": f"Bearer {serving.TOKEN}"}, 400, "9 G"),
])
def test_bad_requests(server, method, path, body, headers, status, message):
    found, text, _ = ask(server, method, path, body, **headers)
    assert found == status and message in str(text)


def test_a_body_without_a_length_is_cut_off_too(server):
    connection = http.client.HTTPConnection(*server.address, timeout=60)
    parts = (b"0" * 1_000_000 for _ in range(40))
    try:
        connection.request("POST", "/predict", parts, encode_chunked=True,
                           headers={"Transfer-Encoding": "chunked"})
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # it did not read on
    finally:
        connection.close()
    assert ask(server, "GET", "/healthz")[0] == 200


def test_the_budget_can_be_changed_while_it_runs(server, model, paths):
    token = {"Authorization": f"Bearer {serving.TOKEN}"}
    costs = model.costs.routed / 1e9
    for budget, network in ((costs.min(), "predictor"), (costs.max(), "classifier")):
        body = json.dumps({"budget": float(budget)})
        status, about, _ = ask(server, "PUT", "/budget", body, **token)
        assert status == 200 and about["budget"] == pytest.approx(budget)
        assert {post(server, path)[1]["network"] for path in paths[:4]} == {network}
    body = json.dumps({"budget": model.budget / 1e9})
    assert ask(server, "PUT", "/budget", body, **token)[0] == 200


def test_under_load_every_answer_is_the_offline_one(server, paths, expected):
    work = [paths[number % len(paths)] for number in range(240)]
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        found = list(pool.map(lambda path: post(server, path), work))
    assert {status for status, _ in found} == {200}
    for (_, record), path in zip(found, work, strict=True):
        assert_same(record, expected[str(path)])


def test_more_than_it_takes_are_refused_and_none_is_lost(evaluated, paths):
    server = serving.start(evaluated, "--limit=3")
    try:
        ask(server, "GET", "/readyz")
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            found = list(pool.map(lambda _: ask(
                server, "POST", "/predict", paths[0].read_bytes()), range(160)))
        statuses = [status for status, _, _ in found]
        assert set(statuses) == {200, 429} and len(statuses) == 160
        assert {headers["retry-after"] for status, _, headers in found if status == 429} == {"1"}
        assert post(server, paths[0])[0] == 200
    finally:
        serving.stop(server)


def test_a_stop_in_mid_load_answers_all_that_was_taken(evaluated, paths, expected):
    server = serving.start(evaluated, "--max_wait=400")
    try:
        ask(server, "GET", "/readyz")
        sent = threading.Barrier(25)

        def one(number):
            path = paths[number % len(paths)]
            connection = http.client.HTTPConnection(*server.address, timeout=60)
            with contextlib.closing(connection):
                connection.request("POST", "/predict", path.read_bytes())
                sent.wait(60)
                response = connection.getresponse()
                return path, response.status, json.loads(response.read())

        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            coming = [pool.submit(one, number) for number in range(24)]
            sent.wait(60)
            time.sleep(0.1)  # for the server to have accepted them; they wait for their buckets
            server.process.send_signal(signal.SIGTERM)
            for each in coming:
                path, status, record = each.result(60)
                assert status == 200
                assert_same(record, expected[str(path)])
        assert server.process.wait(60) in (0, -signal.SIGTERM)
        with pytest.raises(ConnectionRefusedError):
            ask(server, "GET", "/healthz")
    finally:
        serving.stop(server)


@pytest.mark.parametrize(("arguments", "message"), [
    ((), "expected one model, a run's directory or an export, received 0"),
    (("/nowhere",), "expected a working directory with checkpoints, found none"),
    (("DIR", "--budget=9"), "G, received 9 G"),
    (("DIR", "--budget=3000ms"), "ms, received 3e+03ms"),
    (("DIR", "--host=192.0.2.1"), "expected an address that is free, received 192.0.2.1:8000"),
])
def test_it_does_not_start(evaluated, capsys, arguments, message):
    arguments = [argument.replace("DIR", str(evaluated)) for argument in arguments]
    assert runs.call("serve", *arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error
