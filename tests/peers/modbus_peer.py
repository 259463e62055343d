"""A PLC played by pymodbus, which we did not write, against the daemon's Modbus server.

Usage: modbus_peer.py HOST PORT. Commands to the line go to stdout ("publish 10", "beats on",
"beats off"), each answered by a line on stdin; what is found goes to stderr; exit code 0 if all is
as docs/plc.md says. The numbers below are those of docs/plc.md, typed in by hand on purpose.
"""

import socket
import struct
import sys
import time

from pymodbus.client import ModbusTcpClient

HOST, PORT = sys.argv[1], int(sys.argv[2])
CONTROL, PLC_HEARTBEAT, ACKNOWLEDGE = 0, 1, 2
STATUS, STATE, HEARTBEAT, EPOCH, NEWEST, UNACKNOWLEDGED = 101, 102, 103, 104, 106, 107
LATEST, TRIGGERS, OVERRUNS, RING, ENTRY, SLOTS = 120, 152, 172, 1000, 32, 255
READY, ERROR, OVERRUN, PLC_STALE, STANDSTILL, WAITS = 1, 2, 8, 16, 32, 128
FIRST_PART = 1 << 40


def tell(command):
    print(command, flush=True)
    answer = sys.stdin.readline().strip()
    assert answer == "ok", f"{command}: {answer!r}"


def connect():
    client = ModbusTcpClient(HOST, port=PORT, timeout=3, retries=0)
    assert client.connect()
    return client


def read(client, address, count=1):
    reply = client.read_holding_registers(address, count=count)
    assert not reply.isError(), reply
    assert len(reply.registers) == count
    return reply.registers


def until(what, seen):
    """Waits until `seen()` is true: the machine may be slow."""
    deadline = time.monotonic() + 30
    while not seen():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def bits(client):
    return read(client, STATUS)[0]


def write(client, address, *values):
    reply = client.write_registers(address, list(values))
    assert not reply.isError(), reply


def number(client, registers, kind):
    return client.convert_from_registers(registers, getattr(client.DATATYPE, kind))


def check_entry(client, entry, nth):
    """What the line is agreed to say of its nth part, counted from 1."""
    assert entry[0] == entry[31] == (nth - 1) % 65535 + 1, (nth, entry)
    expected = (2, 1) if nth % 5 == 0 else (3, 3) if nth % 7 == 0 else (1, 0)
    assert (entry[1], entry[2]) == expected, (nth, entry)
    assert entry[3] == 4, entry
    assert number(client, entry[4:8], "UINT64") == FIRST_PART + nth, entry
    assert number(client, entry[22:24], "UINT32") == 100_000 + nth, entry
    assert number(client, entry[24:26], "UINT32") == 70_001, entry
    assert number(client, entry[26:30], "UINT64") == 1_777_000_000_000 + nth, entry
    if expected[0] == 3:
        assert entry[12] == 2, entry
    else:
        assert entry[12] == 7, entry
        assert number(client, entry[8:10], "FLOAT32") == nth / 8, entry
        region = [number(client, entry[at : at + 2], "UINT32") for at in (14, 16, 18, 20)]
        assert region == [nth, 70_000, 30, 40], entry
    assert number(client, entry[10:12], "FLOAT32") == 2.5, entry


def follow(client, last, until):
    """The poll loop of docs/plc.md; returns the last sequence number handled."""
    deadline = time.monotonic() + 60
    while last != until:
        assert time.monotonic() < deadline, f"at {last}, waiting for {until}"
        newest = read(client, NEWEST)[0]
        while last != newest:
            seq = 1 if last == 65535 else last + 1
            entry = read(client, RING + (seq - 1) % SLOTS * ENTRY, ENTRY)
            check_entry(client, entry, seq)
            last = seq
        write(client, ACKNOWLEDGE, last)
    return last


def before_the_first_beat(client):
    assert bits(client) & (READY | STANDSTILL) == STANDSTILL
    assert read(client, STATE) == [1]
    assert read(client, LATEST, ENTRY) == [0] * ENTRY
    for slot in range(0, SLOTS, 3):
        assert read(client, RING + slot * ENTRY, 3 * ENTRY) == [0] * 3 * ENTRY


def the_line_is_armed(client):
    tell("beats on")
    until("ready", lambda: bits(client) & (READY | ERROR | STANDSTILL) == READY)
    until("inspecting", lambda: read(client, STATE) == [8])
    assert number(client, read(client, EPOCH, 2), "UINT32") == 70_001
    assert number(client, read(client, TRIGGERS, 4), "UINT64") == (1 << 35) + 1
    for _ in range(3):
        last = read(client, HEARTBEAT)[0]
        until("heartbeat", lambda: read(client, HEARTBEAT)[0] != last)
    # The input registers are the same ones, the discrete inputs the status bits.
    until("input registers", lambda: client.read_input_registers(STATE, count=1).registers == [8])
    armed = [True, False, False, False, True, False]
    until("discrete inputs", lambda: client.read_discrete_inputs(0, count=16).bits[:6] == armed)
    until("coils", lambda: client.read_coils(0, count=1).bits[0] is True)


def results_are_followed(client):
    tell("publish 10")
    last = follow(client, 0, 10)
    assert read(client, LATEST, ENTRY)[0] == 10
    assert read(client, UNACKNOWLEDGED)[0] == 0 and not bits(client) & WAITS
    for burst in (1, 255, 90, 3, 254):
        tell(f"publish {burst}")
        last = follow(client, last, last + burst)
    assert not bits(client) & OVERRUN
    return last


def an_overrun_is_told(client, last):
    tell("publish 300")
    until("300 more", lambda: read(client, NEWEST)[0] == last + 300)
    assert bits(client) & OVERRUN
    assert read(client, UNACKNOWLEDGED)[0] == SLOTS
    assert number(client, read(client, OVERRUNS, 4), "UINT64") == 45
    # The entry that should come next is gone, and its place says so.
    gone = read(client, RING + last % SLOTS * ENTRY, ENTRY)
    assert gone[0] == last + 1 + SLOTS
    last = follow(client, last + 45, last + 300)
    assert bits(client) & OVERRUN, "cleared without being asked to"
    write(client, CONTROL, 1)
    assert not bits(client) & OVERRUN
    write(client, CONTROL, 0)
    return last


def the_plc_is_watched(client):
    write(client, PLC_HEARTBEAT, 1)
    assert not bits(client) & PLC_STALE, "written within the test's plc_heartbeat_ms"
    until("stale", lambda: bits(client) & PLC_STALE)
    # Everything a scan writes and reads in one exchange.
    reply = client.readwrite_registers(
        read_address=100, read_count=24, address=CONTROL, values=[0, 2, 0]
    )
    assert not reply.isError() and not reply.registers[1] & PLC_STALE
    assert read(client, CONTROL, 3) == [0, 2, 0]


def faults_are_refused(client):
    for reply, code in [
        (client.read_holding_registers(50), 2),
        (client.read_holding_registers(4), 2),
        (client.read_holding_registers(RING + SLOTS * ENTRY), 2),
        (client.read_holding_registers(RING + SLOTS * ENTRY - 1, count=2), 2),
        (client.write_register(STATUS, 1), 2),
        (client.write_registers(LATEST + 1, [1]), 2),
        (client.write_registers(ACKNOWLEDGE, [1, 1, 1]), 2),
        (client.read_discrete_inputs(10, count=7), 2),
        (client.write_coil(0, True), 1),
        (client.mask_write_register(address=0, and_mask=0, or_mask=1), 1),
    ]:
        assert reply.isError() and reply.exception_code == code, reply
    # pymodbus will not ask for 126 registers, so by hand.
    with socket.create_connection((HOST, PORT), timeout=3) as raw:
        raw.sendall(struct.pack(">HHHBBHH", 7, 0, 6, 1, 3, RING, 126))
        assert raw.recv(100) == struct.pack(">HHHBBB", 7, 0, 3, 1, 0x83, 3)
        raw.sendall(b"\xff" * 300)
        try:
            assert raw.recv(100) == b""
        except ConnectionResetError:
            pass
    until("other connections go on", lambda: bits(client) & READY)


def standing_still_shows(client):
    tell("beats off")
    still = ERROR | STANDSTILL
    until("standstill", lambda: bits(client) & (READY | ERROR | STANDSTILL) == still)
    heartbeat = read(client, HEARTBEAT)
    assert read(client, STATE) == [3]
    time.sleep(0.3)
    assert read(client, HEARTBEAT) == heartbeat


def main():
    client, other = connect(), connect()
    before_the_first_beat(client)
    the_line_is_armed(client)
    last = results_are_followed(client)
    assert read(other, NEWEST)[0] == last
    an_overrun_is_told(client, last)
    the_plc_is_watched(client)
    faults_are_refused(client)
    standing_still_shows(other)
    print("pymodbus agrees", file=sys.stderr)


main()
