"""What `make demo` runs: the echo server, and the interactive client on it. Only answers go to standard output."""

import itertools
import signal
import socket
import subprocess
import sys
import threading

LONGSHORE = [sys.executable, "-m", "longshore"]
wanted = int(sys.argv[1])
for port in itertools.count(wanted):
    try:
        socket.create_server(("127.0.0.1", port)).close()
        break
    except OSError:
        continue
if port != wanted:
    print(f"Port {wanted} is taken; the demo uses {port}.", file=sys.stderr)
url = f"tcp://127.0.0.1:{port}"
signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for the client
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and the server must not outlive us
server = subprocess.Popen([*LONGSHORE, "serve", "examples/echo.py", "--bind", url], stderr=subprocess.PIPE)
try:
    sys.stderr.buffer.write(server.stderr.readline())  # it comes once the server accepts
    threading.Thread(target=sys.stderr.buffer.writelines, args=(server.stderr,), daemon=True).start()
    sys.exit(subprocess.run([*LONGSHORE, "connect", url], check=False).returncode)
finally:
    server.terminate()
    server.wait()
