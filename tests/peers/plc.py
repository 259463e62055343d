"""A PLC that polls, played by pymodbus, which we did not write: reads every result of the ring once
and acknowledges it, as the poll loop of docs/plc.md says.

Usage: plc.py HOST PORT. Runs until the line is halted (state 2) with nothing left to read, or the
daemon goes away. One JSON line a result on stdout, with what the counters said at that moment.
"""

import json
import sys
import time

from pymodbus.client import ModbusTcpClient
from pymodbus.exceptions import ConnectionException, ModbusIOException

HOST, PORT = sys.argv[1], int(sys.argv[2])
ACKNOWLEDGE, STATE, HEARTBEAT, NEWEST, TRIGGERS, RING, ENTRY, SLOTS = 2, 102, 103, 106, 152, 1000, 32, 255
HALTED = 2


class Gone(Exception):
    pass


def read(client, address, count):
    try:
        reply = client.read_holding_registers(address, count=count)
    except (ConnectionException, ModbusIOException, OSError) as error:
        raise Gone(error)
    if reply.isError():
        raise Gone(reply)
    return reply.registers


def number(client, registers, kind):
    return client.convert_from_registers(registers, getattr(client.DATATYPE, kind))


def follow(client):
    last = 0
    while True:
        state = read(client, STATE, 1)[0]
        newest = read(client, NEWEST, 1)[0]
        triggers, accepted, rejected, in_flight = (
            number(client, read(client, TRIGGERS, 16)[at : at + 4], "UINT64") for at in (0, 4, 8, 12)
        )
        assert triggers >= accepted + rejected
        while last != newest:
            last = 1 if last == 65535 else last + 1
            entry = read(client, RING + (last - 1) % SLOTS * ENTRY, ENTRY)
            assert entry[0] == entry[31] == last, (last, entry)
            result = {
                "seq": last,
                "part": number(client, entry[4:8], "UINT64"),
                "result": entry[1],
                "cause": entry[2],
                "score": number(client, entry[8:10], "FLOAT32"),
            }
            print(json.dumps(result), flush=True)
            client.write_registers(ACKNOWLEDGE, [last])
        if state == HALTED:
            return
        time.sleep(0.02)


def main():
    client = ModbusTcpClient(HOST, port=PORT, timeout=3, retries=0)
    # The port is there before the first beat; the machine may be slow to open it.
    for _ in range(600):
        if client.connect():
            break
        time.sleep(0.1)
    try:
        follow(client)
    except Gone as gone:
        print(f"gone: {gone}", file=sys.stderr)
    client.close()


main()
