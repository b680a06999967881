"""Framings compose: JSON values inside length-prefixed messages, decoded before the handler sees them."""

from longshore import Json, LengthPrefixed, serve


def record(reading, connection):
    values = connection.state.setdefault(reading["sensor"], [])
    values.append(reading["value"])
    return {"sensor": reading["sensor"], "count": len(values), "mean": sum(values) / len(values)}


if __name__ == "__main__":
    serve(record, "tcp://127.0.0.1:5000", framing=Json(LengthPrefixed(max_size=65536)))
