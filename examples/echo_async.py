"""The same echo as an async function: every connection is a task on one asyncio loop."""

from longshore import serve


async def echo(connection):
    while data := await connection.recv(65536):
        await connection.sendall(data)


if __name__ == "__main__":
    serve(echo, "tcp://127.0.0.1:5000")
