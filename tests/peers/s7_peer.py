"""A Siemens PLC, played by the S7 server of python-snap7, which we did not write: its program reads every
result of the ring in its data block once and acknowledges it, as docs/plc.md says.

Usage: s7_peer.py PORT DB EPOCH COUNT. The block begins full of results of an earlier start, all of them
passes. One JSON line a result on stdout; ends well when COUNT of them were read and the line is halted.
"""

import json
import logging
import struct
import sys
import time

from snap7.server import Server
from snap7.type import SrvArea

PORT, DB, EPOCH, COUNT = (int(argument) for argument in sys.argv[1:])
CONTROL, HEARTBEAT, ACKNOWLEDGE = 0, 1, 2
STATUS, STATE, LINE_HEARTBEAT, EPOCH_AT, NEWEST, OLDEST = 101, 102, 103, 104, 106, 108
TRIGGERS, RING, ENTRY, SLOTS = 152, 1000, 32, 255
READY, PLC_STALE = 1 << 0, 1 << 4
HALTED, PASS = 2, 1
BYTES = 2 * (RING + SLOTS * ENTRY)

block = bytearray(BYTES)
for slot in range(SLOTS):
    at = 2 * (RING + slot * ENTRY)
    struct.pack_into(">HH", block, at, slot + 1, PASS)
    struct.pack_into(">H", block, at + 62, slot + 1)


def word(address):
    return struct.unpack_from(">H", block, 2 * address)[0]


def entry(seq):
    at = 2 * (RING + (seq - 1) % SLOTS * ENTRY)
    return bytes(block[at : at + 2 * ENTRY])


def main():
    logging.disable(logging.CRITICAL)
    server = Server(log=False)
    server.register_area(SrvArea.DB, DB, block)
    server.start_to("127.0.0.1", PORT)
    print("listening", flush=True)
    last = read = beats = 0
    was_ready = False
    while True:
        beats = (beats + 1) % 65536
        struct.pack_into(">H", block, 2 * HEARTBEAT, beats)
        ready = bool(word(STATUS) & READY)
        epoch = struct.unpack_from(">I", block, 2 * EPOCH_AT)[0]
        if ready and not was_ready:
            # What an earlier start left behind must be gone before the line is ready.
            assert epoch == EPOCH, epoch
            newest = word(NEWEST)
            stale = [seq for seq in range(newest + 1, SLOTS + 1) if any(entry(seq)[:4])]
            assert not stale, stale
            was_ready = True
        while was_ready and last != word(NEWEST):
            last = 1 if last == 65535 else last + 1
            one = entry(last)
            seq, result, cause, camera, part = struct.unpack_from(">HHHHQ", one)
            copy = struct.unpack_from(">H", one, 62)[0]
            assert seq == copy == last, (seq, copy, last)
            score, threshold = struct.unpack_from(">ff", one, 16)
            print(json.dumps({"seq": seq, "part": part, "result": result, "cause": cause,
                              "camera": camera, "score": score, "threshold": threshold,
                              "triggers": struct.unpack_from(">Q", block, 2 * TRIGGERS)[0]}),
                  flush=True)
            read += 1
            struct.pack_into(">H", block, 2 * ACKNOWLEDGE, last)
        if read >= COUNT and word(STATE) == HALTED:
            # It saw our heartbeat change.
            assert not word(STATUS) & PLC_STALE
            return
        time.sleep(0.005)


main()
