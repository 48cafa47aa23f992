"""`phosphene top` over the service's own metrics page: what it shows, once and live, and what it says of failures."""

import io
import math
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import phosphene.client.top
from phosphene.client.command import main
from phosphene.client.exposition import Scrape, Series, fetch_scrape, parse_scrape
from phosphene.client.top import Window, run_top, top_view
from phosphene.errors import ServiceUnreachable
from service.observing.metric_events import Metrics
from tests.service.observing.example_events import example_artefacts, example_events

METHODS = ("Explain", "GetNeuron")


class Page:
    """A page of metrics on a free port; `before` is called with the number of each scrape before it is answered."""

    def __init__(self, metrics, before):
        scrapes = iter(range(1, 1000))

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                status = before(next(scrapes)) or 200
                body = b"".join(metrics.page({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, lambda status, headers: None))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format, *arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.url = f"http://127.0.0.1:{self._server.server_port}/metrics"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def metrics():
    made = Metrics(methods=METHODS, queue_capacity=64)
    example_artefacts(made)
    return made


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=140, highlight=False)


def shown(console):
    return console.file.getvalue()


def line(text, begins):
    return next(line for line in text.splitlines() if line.startswith(begins))


def text_of(metrics):
    return b"".join(metrics.page({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, lambda status, headers: None)).decode()


def test_once_shows_everything_there_is(metrics, capsys):
    example_events(metrics)
    with Page(metrics, lambda number: None) as page:
        assert main(["top", "--metrics", page.url, "--once"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "since the start" in out
    for section in ("Requests", "Stages", "Device and queues", "Cache", "Models", "Artefacts"):
        assert section in out
    assert line(out, "waiting").split()[1:] == ["interactive", "5,", "bulk", "9", "of", "64"]
    assert line(out, "oldest waits").split()[2:] == ["250", "ms"]
    assert line(out, "scenes").split()[:2] == ["scenes", "300"]
    assert line(out, "hits").split() == ["hits", "33", "%"]
    assert "222222222222" in line(out, "index   photos")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f]", out)


def test_live_shows_rates_between_scrapes(metrics, console):
    stop = threading.Event()
    ticks_s = iter([100.0, 110.0, 120.0])

    def before(number):
        if number == 1:
            for _ in range(1000):
                metrics.request_done(method="Explain", code="OK", duration_s=0.1)
        if number == 2:
            for _ in range(50):
                metrics.request_done(method="Explain", code="OK", duration_s=0.1)
            stop.set()

    with Page(metrics, before) as page:
        run_top(console, page.url, once=False, interval_s=0.001, timeout_s=10.0, stop=stop, clock=lambda: next(ticks_s))
    # Not a terminal: one view behind the other, and the last is the second.
    since_start, text = shown(console).split("phosphene top")[1:]
    assert "over 10.0 s" not in since_start
    assert "over 10.0 s" in text
    assert line(text, "Explain").split()[1:3] == ["5.00", "50.0"]


def test_live_goes_on_when_a_scrape_fails(metrics, console):
    stop = threading.Event()

    def before(number):
        if number == 3:
            stop.set()
        return 503 if number == 2 else 200

    frames = Console(file=io.StringIO(), width=140, force_terminal=True)
    with Page(metrics, before) as page:
        run_top(frames, page.url, once=False, interval_s=0.001, timeout_s=10.0, stop=stop)
    assert "no metrics at" in shown(frames)
    assert shown(frames).rindex("phosphene top") > shown(frames).rindex("no metrics at")


def test_a_service_that_is_not_there_is_told(deserted_address, capsys):
    assert main(["top", "--metrics", f"http://{deserted_address}/metrics", "--once"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "PHOSPHENE_METRICS_LISTEN" in err
    assert "Traceback" not in err


def test_a_proxy_of_the_environment_is_not_for_this_machine(metrics, deserted_address, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://{deserted_address}")
    monkeypatch.delenv("no_proxy", raising=False)
    with Page(metrics, lambda number: None) as page:
        assert fetch_scrape(page.url, timeout_s=10.0).series


def test_what_is_no_page_of_metrics_is_told(capsys):
    class Html:
        def page(self, environ, start_response):
            return [b"<html><body>hello</body></html>"]

    with Page(Html(), lambda number: None) as page:
        with pytest.raises(ServiceUnreachable, match="is no page of metrics"):
            fetch_scrape(page.url, timeout_s=10.0)
        assert main(["top", "--metrics", page.url]) == 1
    assert "is no page of metrics" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--metrics", "localhost:9464"], ["--metrics", "file:///etc/passwd"], ["--interval", "0"]]
)
def test_bad_arguments_are_refused(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["top", *words])
    assert caught.value.code == 2


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 12), (200, 50), (60, 24)])
def test_a_low_terminal_shows_the_device_and_says_what_is_missing(metrics, width, height):
    example_events(metrics)
    stop = threading.Event()
    frames = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    with Page(metrics, lambda number: number == 2 and stop.set()) as page:
        run_top(frames, page.url, once=False, interval_s=0.001, timeout_s=10.0, stop=stop)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "\x00", shown(frames)).rsplit("phosphene top", 1)[1].split("\x00")
    lines = max(text, key=len).splitlines()
    assert len(lines) <= height
    assert max(map(len, lines[1:])) <= width
    whole = "\n".join(lines)
    assert "device busy" in whole
    assert "waiting" in whole
    assert ("Artefacts" in whole) == (height == 50)
    assert ("more lines: make the terminal higher" in whole) == (height < 50)


def test_methods_that_nobody_called_take_no_line(metrics, console):
    metrics.request_done(method="Explain", code="OK", duration_s=0.1)
    with Page(metrics, lambda number: None) as page:
        run_top(console, page.url, once=True, interval_s=1.0, timeout_s=10.0)
    assert line(shown(console), "Explain")
    assert "GetNeuron" not in shown(console)


def test_a_quiet_service_has_a_view_too(console):
    with Page(Metrics(methods=METHODS, queue_capacity=64), lambda number: None) as page:
        run_top(console, page.url, once=True, interval_s=1.0, timeout_s=10.0)
    assert line(shown(console), "device busy").split()[2:] == ["0", "%"]
    assert "Models" not in shown(console)


def test_labels_cannot_steer_the_terminal(console):
    page = 'phosphene_artefact_info{kind="index\\n\x1b[2J",name="[red]x\x07",id="1",code_id="2"} 1.0\n'
    scrape = parse_scrape(page)
    console.print(top_view(Window(now=scrape, grown=scrape, length_s=1.0), "http://x"))
    assert "[red]x" in shown(console)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f]", shown(console))


def test_every_metric_that_is_shown_exists(metrics):
    example_events(metrics)
    source = Path(phosphene.client.top.__file__).read_text()
    named = set(re.findall(r'"(phosphene_[a-z0-9_]+)"', source))
    assert len(named) > 10
    names = set(parse_scrape(text_of(metrics)).series)
    histograms = {name.removesuffix("_bucket") for name in names if name.endswith("_bucket")}
    assert named - names - histograms == set()


def test_parsing_agrees_with_prometheus_own_parser(metrics):
    from prometheus_client.parser import text_string_to_metric_families

    example_events(metrics)
    metrics.artefact_served(kind="bundle", name='a "quoted\\ \n{name}, b="c"', id="1", code_id="2")
    text = text_of(metrics)
    theirs = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    ours = {
        (name, *sorted(one.labels.items())): one.value
        for name, many in parse_scrape(text).series.items()
        for one in many
    }
    assert ours == theirs


def test_a_label_may_hold_what_else_could_end_a_line():
    scrape = parse_scrape('x{a="b\u2028c\x85d"} 1\r\nx{a="e"} 2\n')
    assert scrape.by("x", "a") == {"b\u2028c\x85d": 1.0, "e": 2.0}


@pytest.mark.parametrize("page", ["", "# HELP x y\n", "not a sample at all\n", "x{a=1\n", "x one\n"])
def test_a_damaged_page_is_an_error(page):
    with pytest.raises(ValueError, match=r"sample|float"):
        parse_scrape(page)


@pytest.mark.parametrize("url", ["http://[::1", "http://", "http://x:99999", "http://x:port/", "ftp://x"])
def test_what_is_no_address_is_refused_as_typed(url, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["top", "--once", "--metrics", url])
    assert "say http://HOST:PORT/metrics" in capsys.readouterr().err


def test_a_scrape_of_no_address_is_an_error():
    with pytest.raises(ServiceUnreachable, match="no page of metrics"):
        fetch_scrape("http://[::1", timeout_s=1.0)


def histogram(values, bounds):
    counts = [sum(value <= bound for value in values) for bound in bounds]
    return Scrape(
        series={
            "x_bucket": tuple(
                Series(labels={"le": str(bound)}, value=float(count))
                for bound, count in zip(bounds, counts, strict=True)
            )
        }
    )


@given(st.lists(st.floats(0.001, 20), min_size=1), st.floats(0.01, 1.0))
def test_a_quantile_is_within_the_bucket_that_holds_it(values, share):
    bounds = [0.1, 0.5, 1.0, 5.0, math.inf]
    found = histogram(values, bounds).quantile("x", share)
    exact = sorted(values)[max(math.ceil(share * len(values) - 1e-9), 1) - 1]
    above = next(bound for bound in bounds if exact <= bound)
    below = max((bound for bound in [0.0, *bounds] if bound < above), default=0.0)
    assert below <= found <= (5.0 if math.isinf(above) else above)


def test_a_restarted_counter_counts_from_zero():
    def page(value):
        return parse_scrape(f'x_total{{a="b"}} {value}\n')

    assert page(12).since(page(10)).total("x_total") == 2
    assert page(3).since(page(10)).total("x_total") == 3


def test_the_view_needs_no_more_than_the_client_has():
    program = (
        "import sys, phosphene.client.top; print(sorted({'torch', 'prometheus_client', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
