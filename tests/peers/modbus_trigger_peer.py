"""A PLC played by pymodbus that triggers parts and takes held results one by one.

Usage: modbus_trigger_peer.py HOST PORT. "publish N" on stdout asks the line for N results, answered by a
line on stdin; what is found goes to stderr; exit code 0 if all is as docs/plc.md says. The numbers
below are those of docs/plc.md, typed in by hand on purpose.
"""

import sys
import time

from pymodbus.client import ModbusTcpClient

CONTROL, TRIGGER = 0, 3
TRIGGER_READY, TRIGGER_ACK, MISSED, EXPOSED, MISSED_EVER = 112, 113, 114, 115, 116
HELD_STATUS, HELD_WAITING, HELD, ACQUISITION = 300, 301, 304, 336
ENABLE, HOLD, ACK = 2, 4, 8
VALID, HELD_OVERRUN = 1, 4
CLEAR_OVERRUN = 1
CAMERA = 1  # the second one of the config, bit 1
BIT = 1 << CAMERA

plc = ModbusTcpClient(sys.argv[1], port=int(sys.argv[2]), timeout=3, retries=0)
assert plc.connect()


def tell(command):
    print(command, flush=True)
    assert sys.stdin.readline().strip() == "ok", command


def read(address, count=1):
    reply = plc.read_holding_registers(address, count=count)
    assert not reply.isError(), reply
    return reply.registers


def write(address, *values):
    reply = plc.write_registers(address, list(values))
    assert not reply.isError(), reply


def until(what, seen):
    deadline = time.monotonic() + 30
    while not seen():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def u64(registers):
    return int.from_bytes(b"".join(r.to_bytes(2, "big") for r in registers), "big")


def part():
    return u64(read(ACQUISITION + 4 * CAMERA, 4))


tell("publish 0")

# Without enable a bit is no trigger, nor is one that stands when it comes on.
write(TRIGGER, BIT)
write(CONTROL, ENABLE)
time.sleep(0.1)
assert read(TRIGGER_READY, 2) == [0, 0], "not ready while the bit stands"
assert part() == 0
write(TRIGGER, 0)
until("ready", lambda: read(TRIGGER_READY)[0] == BIT)

# Ten parts, each held until it is acknowledged, written twice as a nervous PLC does.
for nth in range(1, 11):
    until("ready again", lambda: read(TRIGGER_READY)[0] == BIT)
    write(TRIGGER, BIT)
    write(TRIGGER, BIT)
    until("acknowledged", lambda: read(TRIGGER_ACK)[0] == BIT)
    assert part() == nth, "the part id is there with the acknowledge"
    assert read(MISSED)[0] == 0
    until("exposed", lambda: read(EXPOSED)[0] == BIT)
    write(TRIGGER, 0)
    assert read(TRIGGER_ACK)[0] == 0
    assert part() == nth, "and stays"

# Too early: the camera has not said that it is ready again.
until("ready again", lambda: read(TRIGGER_READY)[0] == BIT)
write(TRIGGER, BIT)
until("acknowledged", lambda: read(TRIGGER_ACK)[0] == BIT)
write(TRIGGER, 0)
write(TRIGGER, BIT)
until("acknowledged", lambda: part() == 12 and read(TRIGGER_ACK)[0] == BIT)
assert read(MISSED)[0] == BIT, "the twelfth is a part, and missed"
assert read(MISSED_EVER, 2) == [0, 1]
write(TRIGGER, 0)

# Held results: payload first, valid until acknowledged, the next when it has fallen.
assert read(HELD_STATUS)[0] & VALID == 0, "nothing is held that nobody asked for"
write(CONTROL, ENABLE | HOLD)
tell("publish 5")
for nth in range(1, 6):
    until("valid", lambda: read(HELD_STATUS)[0] & VALID)
    held = read(HELD, 32)
    assert held[0] == held[31] == nth, held
    assert u64(held[4:8]) == (1 << 40) + nth, held
    assert held[1] == (2 if nth == 5 else 1), held
    write(CONTROL, ENABLE | HOLD | ACK)
    write(CONTROL, ENABLE | HOLD | ACK)
    assert read(HELD_STATUS)[0] & VALID == 0, "taken"
    time.sleep(0.02)
    assert read(HELD_STATUS)[0] & VALID == 0, "none before the acknowledge falls"
    write(CONTROL, ENABLE | HOLD)

# An acknowledge without a result does nothing; eight are held, the ninth is an overrun.
write(CONTROL, ENABLE | HOLD | ACK)
write(CONTROL, ENABLE | HOLD)
tell("publish 9")
until("eight held", lambda: read(HELD_WAITING)[0] == 7)
until("overrun", lambda: read(HELD_STATUS)[0] & HELD_OVERRUN)
assert read(HELD)[0] == 6, "the oldest stands"
write(CONTROL, ENABLE | HOLD | CLEAR_OVERRUN)
assert read(HELD_STATUS)[0] & HELD_OVERRUN == 0
print("all as promised", file=sys.stderr)
