"""The socket that workers share."""

import asyncio
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from m3_runtime.errors import InputError
from m3_runtime.server.serving import listening, run_worker
from m3_runtime.server.settings import ServedBundle, ServerSettings


def test_answers_are_not_held_back_by_nagles_algorithm():
    """asyncio switches it off only where a socket says that it is TCP; else small answers take 40 ms more."""
    settings = ServerSettings(ServedBundle(Path("unused"), threads=1), port=0)
    seen = []

    async def scenario() -> None:
        def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            ours = writer.get_extra_info("socket")
            seen.append(ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with listening(settings) as at:
            async with await asyncio.start_server(note, sock=at):
                reader, writer = await asyncio.open_connection(*at.getsockname())
                assert await reader.read() == b""
                writer.close()
                await writer.wait_closed()

    asyncio.run(scenario())
    assert seen == [1]


def test_of_two_servers_that_start_together_the_slower_says_why_it_ends(tiny_bundle):
    """Both are bound while they load, as the system allows it; only one of them can listen then."""
    settings = ServerSettings(ServedBundle(tiny_bundle, threads=1, variant="onnx-fp32"), port=0)
    with listening(settings) as faster:
        settings = replace(settings, port=faster.getsockname()[1])
        with listening(settings) as slower:
            faster.listen()
            with pytest.raises(
                InputError, match=f"cannot listen on 127.0.0.1:{settings.port}: .*choose another --host or --port"
            ):
                run_worker(settings, slower)
