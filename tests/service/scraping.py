"""Reads the metrics page of a running service, as Prometheus does."""

import asyncio

import pytest


async def metric(running, line):
    reader, writer = await asyncio.open_connection(running.metrics_address.host, running.metrics_address.port)
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    (value,) = [row.rpartition(" ")[2] for row in text.splitlines() if row.startswith(line + " ")]
    return float(value)


async def until(running, line, value):
    """Wait until a metric has a value; bounded by the number of scrapes."""
    for _ in range(200):
        if await metric(running, line) == value:
            return
    pytest.fail(f"{line} never became {value}, is {await metric(running, line)}")


async def page(address):
    """Every sample of the page, by its name and labels."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    text = (await reader.read()).decode().partition("\r\n\r\n")[2]
    writer.close()
    samples = [line.rpartition(" ") for line in text.splitlines() if line[:1] not in ("", "#")]
    return {name: float(value) for name, _, value in samples}
