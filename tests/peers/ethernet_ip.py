"""A PLC on EtherNet/IP, played by icspacket's scanner, which we did not write, against the daemon's adapter.

Usage: ethernet_ip.py ADAPTER PORT IO_PORT EPOCH COUNT. Goes through what docs/plc.md promises, in order;
says where it is by one JSON line on stdout each: "ready", COUNT results, "part", "idle", "silent", "back",
"halted". Exits with 0 when all was as promised. The numbers are those of docs/plc.md, typed in by hand.
"""

import json
import struct
import sys
import time

from icspacket.proto.cip.connection import CIP_Connection
from icspacket.proto.cip.connmgr import ForwardOpenRequest, NetworkConnectionParameters
from icspacket.proto.cip.epath import EPATH, LogicalSegment
from icspacket.proto.cip.io import CIPIO_Connection, CIPIOError

ADAPTER = sys.argv[1]
PORT, IO_PORT, EPOCH, COUNT = (int(argument) for argument in sys.argv[2:])
INPUT, OUTPUT, CONFIGURATION, INPUT_BYTES, OUTPUT_BYTES = 100, 150, 151, 264, 16
INTERVAL_US = 10_000
CLEAR_OVERRUN, TRIGGER_ENABLE, HOLD, ACK = 1, 2, 4, 8
READY, OVERRUN, PLC_STALE = 1, 8, 16
VALID, COMPLETED, HELD_OVERRUN = 1, 2, 4
HALTED = 2


def tell(what, **more):
    print(json.dumps({"at": what, **more}), flush=True)


class Scanner:
    """One cycle: the output assembly is sent, the newest input assembly taken."""

    def __init__(self):
        self.control, self.heartbeat, self.trigger, self.run = HOLD, 0, 0, True
        self.serial = 0
        self.open()

    def open(self):
        self.serial += 1
        self.session = CIP_Connection(timeout=10.0)
        self.session.connect((ADAPTER, PORT))

        def parameters(size):
            # Scheduled, point to point, of this size and no other.
            return NetworkConnectionParameters(
                connection_size=size, variable=False, priority=2, connection_type=2,
                redundant_owner=False)

        path = EPATH(
            LogicalSegment.class_id(4), LogicalSegment.instance_id(CONFIGURATION),
            LogicalSegment.connection_point(OUTPUT), LogicalSegment.connection_point(INPUT))
        answer = self.session.forward_open(ForwardOpenRequest.new(
            priority=10, timeout_ticks=100, o_to_t_connection_id=1, t_to_o_connection_id=2,
            connection_serial_number=self.serial, originator_vendor_id=1,
            originator_serial_number=1, timeout_multiplier=5, o_to_t_rpi=INTERVAL_US,
            # Behind the data: its count of two bytes, and towards the adapter the run/idle header.
            o_to_t_parameters=parameters(OUTPUT_BYTES + 6), t_to_o_rpi=INTERVAL_US,
            t_to_o_parameters=parameters(INPUT_BYTES + 2), transport_trigger=1,
            connection_path=path))
        self.io = CIPIO_Connection(timeout=5.0, bind_address="127.0.0.1")
        CIPIO_Connection.DEFAULT_PORT = IO_PORT
        self.io.open(answer, (ADAPTER, IO_PORT))

    def cycle(self):
        self.heartbeat = (self.heartbeat + 1) % 65536
        data = struct.pack("<HHH", self.control, self.heartbeat, self.trigger)
        self.io.send(data.ljust(OUTPUT_BYTES, b"\0"), run_idle=int(self.run))
        self.take(self.newest_input())

    def newest_input(self):
        """Waits for one, then for no more: this program may be slower than its interval."""
        data = self.io.recv()
        self.io.sock.settimeout(0.0)
        try:
            while True:
                data = self.io.recv()
        except CIPIOError:
            self.io.sock.settimeout(5.0)
        return data

    def take(self, data):
        assert len(data) == INPUT_BYTES, len(data)
        (self.status, self.state, self.line_heartbeat, self.newest, self.epoch, self.up, self.cameras,
         self.trigger_ready, self.trigger_ack, self.trigger_missed, self.exposed, self.missed,
         self.alarms, self.alarm, self.held, self.waiting, version, self.echo) = struct.unpack_from(
            "<HHHHIHHHHHHIHHHHHH", data)
        assert version == 1, version
        self.parts = struct.unpack_from("<16Q", data, 40)
        self.triggered, self.accepted, self.rejected, self.in_flight = struct.unpack_from("<4Q", data, 168)
        self.result = dict(zip(
            ("seq", "result", "cause", "camera", "part", "score", "threshold", "there", "_",
             "x", "y", "width", "height", "latency_us", "epoch", "_", "triggered_ms"),
            struct.unpack_from("<HHHHQffHHIIIIIIIQ", data, 200)))

    def until(self, what, seen):
        deadline = time.monotonic() + 60
        while True:
            self.cycle()
            if seen():
                return
            assert time.monotonic() < deadline, (what, vars(self))

    def close(self):
        self.io.close()
        self.session.close()


def take_results(plc, count):
    """Results Valid, its acknowledge, and both down again."""
    for _ in range(count):
        plc.until("a result", lambda: plc.held & VALID)
        tell("result", waiting=plc.waiting, **plc.result)
        plc.control |= ACK
        plc.until("valid falls", lambda: not plc.held & VALID)
        plc.control &= ~ACK
        plc.until("acknowledge has fallen", lambda: not plc.echo & ACK)


def trigger(plc):
    plc.control |= TRIGGER_ENABLE
    plc.until("ready for a trigger", lambda: plc.trigger_ready == 1)
    plc.trigger = 1
    plc.until("acknowledged", lambda: plc.trigger_ack == 1)
    part = plc.parts[0]
    plc.trigger = 0
    plc.until("both down", lambda: plc.trigger_ack == 0)
    return part


def main():
    plc = Scanner()
    plc.until("ready", lambda: plc.status & READY)
    assert (plc.epoch, plc.cameras, plc.up) == (EPOCH, 2, 1), vars(plc)
    assert plc.triggered == (1 << 35) + 1 and plc.state == 8, vars(plc)
    plc.until("our heartbeat is seen", lambda: not plc.status & PLC_STALE)
    last = plc.line_heartbeat
    plc.until("the line's heartbeat", lambda: plc.line_heartbeat != last)
    tell("ready")
    take_results(plc, COUNT)
    # The ring's overrun is not this PLC's business, however many results there were.
    assert not plc.status & OVERRUN and plc.newest == COUNT, vars(plc)
    tell("part", part=trigger(plc))

    # Idle: nothing that it says is acted on, and what stood meanwhile is no edge afterwards.
    plc.until("ready again", lambda: plc.trigger_ready == 1)
    plc.run, plc.trigger = False, 1
    plc.until("disabled", lambda: not plc.echo & TRIGGER_ENABLE)
    for _ in range(30):
        plc.cycle()
    assert plc.trigger_ready == 0 and plc.trigger_ack == 0, vars(plc)
    plc.run = True
    plc.until("enabled", lambda: plc.echo & TRIGGER_ENABLE)
    for _ in range(30):
        plc.cycle()
        assert plc.trigger_ack == 0, vars(plc)
    plc.trigger = 0
    tell("idle", part=trigger(plc))

    # Silent: the connection is closed by the adapter. A result waits for the next one.
    plc.until("held for later", lambda: plc.held & VALID)
    seq = plc.result["seq"]
    plc.io.sock.settimeout(3.0)
    try:
        while True:
            plc.io.recv()
    except CIPIOError:
        tell("silent")
    plc.close()
    plc.open()
    plc.until("still held", lambda: plc.held & VALID)
    assert plc.result["seq"] == seq, (seq, plc.result)
    tell("back")
    take_results(plc, 1)
    plc.until("halted", lambda: plc.state == HALTED)
    tell("halted")
    plc.session.forward_close()
    plc.close()


main()
