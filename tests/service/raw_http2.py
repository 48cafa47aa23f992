"""An HTTP/2 client that keeps to none of gRPC's manners: half-open calls, floods of frames, headers of any content."""

import asyncio
from collections import defaultdict
from contextlib import suppress

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

EXPLAIN = "/phosphene.v1.PhospheneService/Explain"
_HANG_S = 60


class RawConnection:
    """One connection; an async context manager that drops it."""

    def __init__(self, address):
        self._address = address
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(header_encoding=False, validate_outbound_headers=False)
        )
        self._changed = asyncio.Condition()
        self.headers = defaultdict(dict)
        """Headers and trailers that came, by stream."""
        self.ended = {}
        """Streams that are over: None, or the error code of their reset."""
        self.is_over = False
        """Whether the server has ended the connection, or said that it will."""
        self.settings = {}

    async def __aenter__(self):
        self._reader, self._writer = await asyncio.open_connection(self._address.host, self._address.port)
        self._h2.initiate_connection()
        await self.flush()
        self._listening = asyncio.create_task(self._listen())
        await self.until(lambda: self.settings or self.is_over)
        return self

    async def __aexit__(self, *exit):
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        self._writer.transport.abort()

    def begin(self, path=EXPLAIN, extra=(), *, ends=False):
        """Send the headers of a call and nothing else; its stream."""
        stream = self._h2.get_next_available_stream_id()
        headers = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path.encode()),
            (b":authority", b"test"),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            *extra,
        ]
        self._h2.send_headers(stream, headers, end_stream=ends)
        return stream

    async def send(self, stream, message, *, is_compressed=False, ends=True):
        """A whole message, as fast as the server takes it; no further once the call is over."""
        rest = memoryview(bytes([is_compressed]) + len(message).to_bytes(4, "big") + message)
        while rest and not self._is_done(stream):
            size = min(self._h2.local_flow_control_window(stream), 16384, len(rest))
            if size:
                self._h2.send_data(stream, bytes(rest[:size]), end_stream=ends and size == len(rest))
                rest = rest[size:]
            await self.flush()
            if not size:
                await self.until(lambda: self._is_done(stream) or self._h2.local_flow_control_window(stream))

    async def call(self, message, path=EXPLAIN, extra=(), *, is_compressed=False):
        """One call to its end; its trailers."""
        stream = self.begin(path, extra)
        await self.send(stream, message, is_compressed=is_compressed)
        await self.until(lambda: self._is_done(stream))
        return self.headers[stream]

    def allow_any_number(self):
        """Forget how many calls the server allows."""
        self._h2.remote_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = 2**20
        self._h2.remote_settings.acknowledge()

    def reset(self, stream):
        self._h2.reset_stream(stream, error_code=8)

    def ping(self):
        self._h2.ping(b"12345678")

    async def flush(self):
        """Hand what was begun to the network; a connection that is over takes nothing."""
        with suppress(ConnectionError):
            self._writer.write(self._h2.data_to_send())
            await self._writer.drain()

    async def until(self, is_so):
        """Wait for something that the server says."""
        async with asyncio.timeout(_HANG_S), self._changed:
            await self._changed.wait_for(is_so)

    def _is_done(self, stream):
        return stream in self.ended or self.is_over

    async def _listen(self):
        try:
            while data := await self._reader.read(65536):
                for event in self._h2.receive_data(data):
                    self._take(event)
                await self.flush()
                await self._tell()
        except (ConnectionError, h2.exceptions.ProtocolError):
            pass
        self.is_over = True
        await self._tell()

    def _take(self, event):
        match event:
            case h2.events.RemoteSettingsChanged():
                self.settings = {code: change.new_value for code, change in event.changed_settings.items()}
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                self.headers[event.stream_id] |= dict(event.headers)
            case h2.events.DataReceived():
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded():
                self.ended.setdefault(event.stream_id, None)
            case h2.events.StreamReset():
                self.ended.setdefault(event.stream_id, event.error_code)
            case h2.events.ConnectionTerminated():
                self.is_over = True

    async def _tell(self):
        async with self._changed:
            self._changed.notify_all()
