"""A remote I/O module, played by pymodbus's server, which we did not write: outputs that its watchdog puts
to the safe state and holds there, as docs/plc.md says of such modules.

Usage: remote_io.py PORT UNIT. Its watchdog fires when no outputs were written for half a second, from the
first write on; then writes are refused until coil 81 is written with 0. Wired as a jumper: input n is
output n turned round. The counter goes on by 65537 at each look. One JSON line on stdout for each change
of the outputs, and for the watchdog.
"""

import asyncio
import json
import sys
import time

from pymodbus.constants import ExcCodes
from pymodbus.server import StartAsyncTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

PORT, UNIT = int(sys.argv[1]), int(sys.argv[2])
OUTPUTS_AT, OUTPUTS, INPUTS_AT, ENCODER_AT, KEEP_ALIVE_AT = 16, 6, 32, 100, 40
SAFE_MODE_AT, CLEAR_AT = 80, 81
WATCHDOG_S = 0.5


class Module:
    def __init__(self):
        self.outputs = 0
        self.written_at = None
        self.latched = False
        self.encoder = 0xFFFF_0000
        self.keep_alive = None

    def show(self, **what):
        print(json.dumps(what), flush=True)

    def set(self, outputs):
        if outputs != self.outputs:
            self.outputs = outputs
            self.show(outputs=outputs)

    def watch(self):
        if self.written_at and not self.latched and time.monotonic() > self.written_at + WATCHDOG_S:
            self.latched = True
            self.set(0)
            self.show(latched=True)

    async def act(self, function, start, address, count, registers, values):
        # A request that waited while the module stood still comes after its watchdog.
        self.watch()
        if function in (5, 6, 15) and values is None:
            # What was written is read again, for the answer.
            return None
        if function == 15:
            assert (address, len(values)) == (OUTPUTS_AT, OUTPUTS), (address, values)
            if self.latched:
                return ExcCodes.DEVICE_FAILURE
            self.written_at = time.monotonic()
            self.set(sum(int(on) << n for n, on in enumerate(values)))
        elif function == 5 and address == CLEAR_AT and not values[0]:
            self.latched = False
            self.written_at = None
            self.show(latched=False)
        elif function == 6:
            assert values[0] != self.keep_alive, values
            self.keep_alive = values[0]
        elif function == 1:
            registers[SAFE_MODE_AT // 16 - start] = int(self.latched) << SAFE_MODE_AT % 16
        elif function == 2:
            registers[INPUTS_AT // 16 - start] = ~self.outputs & 0xFFFF
        elif function == 4:
            self.encoder = (self.encoder + 65537) % (1 << 32)
            registers[ENCODER_AT - start : ENCODER_AT - start + 2] = divmod(self.encoder, 1 << 16)
        return None


async def main():
    module = Module()
    bits = [SimData(0, count=256, values=False, datatype=DataType.BITS)]
    words = [SimData(0, count=128, values=0, datatype=DataType.REGISTERS)]
    device = SimDevice(id=UNIT, simdata=(bits, bits, words, words), action=module.act)
    server = asyncio.create_task(StartAsyncTcpServer(device, address=("127.0.0.1", PORT)))
    await asyncio.sleep(0.2)
    print("listening", flush=True)
    while not server.done():
        module.watch()
        await asyncio.sleep(0.05)
    await server


asyncio.run(main())
