"""The socket that workers share."""

import asyncio
import socket
from pathlib import Path

from m3_runtime.server.serving import listening
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
