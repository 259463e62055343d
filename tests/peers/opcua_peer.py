"""OPC UA clients, played by asyncua, which we did not write.

Usage: opcua_peer.py MODE URL PKI FOLDER [USER PASSWORD COUNT]. PKI is the server's folder of keys; FOLDER is where
the client keeps its own.

enter   is refused as long as its certificate is not trusted, has it trusted as a person would, and is refused
        for each other reason that there is.
watch   prints a JSON line a result that it is told of, and one a state, until COUNT results were told.
ask     walks through the nodes and calls what there is to be called; COUNT is the newest part's number.
look    the same calls by somebody who may only look.

With INSPECTD_NODESET, the path of Opc.Ua.MachineVision.NodeSet2.xml, ask also compares names and numbers of the
standard's namespace with those that the OPC Foundation publishes.
"""

import asyncio
import json
import logging
import os
import shutil
import sys
import xml.etree.ElementTree
from pathlib import Path

from asyncua import Client, ua
from asyncua.crypto.security_policies import SecurityPolicyAes256Sha256RsaPss, SecurityPolicyBasic256Sha256

MODE, URL = sys.argv[1:3]
PKI, FOLDER = (Path(argument) for argument in sys.argv[3:5])
USER, PASSWORD, COUNT = (*sys.argv[5:8], None, None, None)[:3]
VISION, OWN = "http://opcfoundation.org/UA/MachineVision", "urn:inspectd:line"
SYSTEM, MACHINE = "VisionSystem", "VisionSystem/VisionStateMachine"
AUTOMATIC, RESULTS = f"{MACHINE}/AutomaticModeStateMachine", f"{SYSTEM}/ResultManagement"


def say(**what):
    print(json.dumps(what), flush=True)


async def client(user=USER, password=PASSWORD, policy=SecurityPolicyBasic256Sha256, discover=False):
    made = Client(URL, timeout=20)
    made.application_uri = "urn:peer:opcua"
    key, certificate = FOLDER / "key.pem", FOLDER / "certificate.der"
    await made.setup_self_signed_certificate(key, certificate)
    server = None if discover else str(PKI / "own" / "cert.der")
    await made.set_security(policy, str(certificate), str(key), server_certificate=server)
    if user is not None:
        made.set_user(user)
        made.set_password(password)
    return made


async def refused(made, why, *names):
    """Not let in, and for a reason of this name; a connection that is cut is one too where none is given."""
    try:
        async with made:
            pass
    except Exception as error:
        name = type(error).__name__
        assert not names or name in names, (why, name, error)
        say(refused=why, by=name)
        return
    raise AssertionError(f"let in: {why}")


async def enter():
    await refused(await client(), "untrusted")
    [rejected] = (PKI / "rejected").glob("*.der")
    assert rejected.read_bytes() == (FOLDER / "certificate.der").read_bytes()
    shutil.move(rejected, PKI / "trusted" / rejected.name)
    await refused(await client(user=None), "anonymous", "BadIdentityTokenRejected", "BadIdentityTokenInvalid", "UaError")
    await refused(await client(password="wrong"), "password", "BadIdentityTokenRejected", "BadUserAccessDenied")
    await refused(await client(user="nobody"), "user", "BadIdentityTokenRejected", "BadUserAccessDenied")
    await refused(Client(URL, timeout=20), "unsecured")
    for policy in SecurityPolicyBasic256Sha256, SecurityPolicyAes256Sha256RsaPss:
        # As a client that knows the address only: it asks for the endpoints and takes their certificate.
        async with await client(policy=policy, discover=True) as entered:
            say(entered=policy.__name__, namespaces=await entered.get_namespace_array())
    found = await Client(URL, timeout=20).connect_and_get_server_endpoints()
    assert all(one.SecurityMode == ua.MessageSecurityMode.SignAndEncrypt for one in found), found


class Told:
    def __init__(self):
        self.queue = asyncio.Queue()

    def datachange_notification(self, node, value, data):
        self.queue.put_nowait((node.nodeid.Identifier, value))

    def status_change_notification(self, status):
        say(status=str(status))


class Line:
    """The nodes of the line by their path."""

    def __init__(self, connected, vision, own):
        self.client, self.vision, self.own = connected, vision, own

    @classmethod
    async def of(cls, connected):
        indices = [await connected.get_namespace_index(uri) for uri in (VISION, OWN)]
        return cls(connected, *indices)

    def node(self, path):
        return self.client.get_node(ua.NodeId(path, self.own))

    async def value(self, path):
        return await self.node(path).read_value()

    async def call(self, path, *arguments):
        on, _, _ = path.rpartition("/")
        return await self.node(on).call_method(self.node(path).nodeid, *arguments)

    async def fails(self, name, path, *arguments):
        try:
            await self.call(path, *arguments)
        except ua.UaStatusCodeError as error:
            assert type(error).__name__ == name, (path, error)
            return
        raise AssertionError(f"{path} was answered")


async def watch():
    told = Told()
    async with await client() as connected:
        line = await Line.of(connected)
        subscription = await connected.create_subscription(50, told)
        latest, state = f"{RESULTS}/Results/Latest", f"{AUTOMATIC}/CurrentState/Number"
        for path in latest, state:
            await subscription.subscribe_data_change(line.node(path), queuesize=1000, sampling_interval=0.0)
        say(watching=True)
        heard = 0
        while heard < int(COUNT):
            path, value = await told.queue.get()
            if path == state:
                say(state=value)
            elif value is not None:
                heard += 1
                say(result=json.loads(value))


def string(text=""):
    return ua.Variant(text, ua.VariantType.String)


def job(*cameras):
    return (string(),) * 4 + (ua.Variant(list(cameras), ua.VariantType.String),)


def wanted(part):
    return string(str(part)), ua.Variant(0, ua.VariantType.Int32)


def listed(state=0, part="", recipe="", product="", most=0, start=0):
    texts = ["", part, "", recipe, "", "", product, ""]
    number = ua.VariantType
    return (ua.Variant(state, number.Int32), *map(string, texts), ua.Variant(most, number.UInt32),
            ua.Variant(start, number.UInt32), ua.Variant(0, number.Int32))


CAUSE = ua.Variant(0, ua.VariantType.Int32), string("test")


async def ask():
    newest = int(COUNT)
    async with await client() as connected:
        line = await Line.of(connected)
        # By the standard's names, as a client that knows nothing else.
        v, o = line.vision, line.own
        system = await connected.nodes.objects.get_child([f"{o}:VisionSystem"])
        current = await system.get_child([f"{v}:VisionStateMachine", "0:CurrentState"])
        assert (await current.read_value()).Text == "Operational"
        assert await (await current.get_child("0:Number")).read_value() == 4
        automatic = [f"{v}:VisionStateMachine", f"{v}:AutomaticModeStateMachine", "0:CurrentState"]
        inner = await system.get_child(automatic)
        assert (await inner.read_value()).Text == "ContinuousExecution"
        state = connected.get_node(await (await inner.get_child("0:Id")).read_value())
        assert (await state.read_browse_name()).to_string() == f"{v}:ContinuousExecution"
        assert await (await state.get_child("0:StateNumber")).read_value() == 8
        kinds = {}
        for path in SYSTEM, MACHINE, AUTOMATIC, RESULTS, f"{RESULTS}/Results", f"{RESULTS}/Results/Latest":
            node = line.node(path)
            kind = connected.get_node(await node.read_type_definition())
            kinds[path] = (await kind.read_browse_name()).to_string()
        say(kinds=kinds)

        # The newest result, field by field.
        latest = {}
        for field in await line.node(f"{RESULTS}/Results/Latest").get_children():
            name = await field.read_browse_name()
            assert name.NamespaceIndex == v, name
            latest[name.Name] = await field.read_value()
        content = json.loads(latest["ResultContent"][0])
        assert content["part"] == newest, content
        assert latest["ResultId"] == latest["PartId"] == latest["JobId"] == str(newest), latest
        assert latest["InternalRecipeId"] == "bottle", latest
        assert not latest["IsPartial"] and not latest["IsSimulated"]
        start, end = latest["ProcessingTimes"]
        assert end == latest["CreationTime"] and 0.09 < (end - start).total_seconds() < 0.2
        slots = [await line.value(f"{RESULTS}/Results/Result{slot}/ResultId") for slot in range(1, 11)]
        assert sorted(map(int, slots)) == list(range(newest - 9, newest + 1)), slots

        # What the standard has no place for.
        shown = {}
        for node in await line.node(f"{SYSTEM}/Line").get_children():
            name = await node.read_browse_name()
            assert name.NamespaceIndex == o
            if await node.read_node_class() == ua.NodeClass.Variable:
                shown[name.Name] = await node.read_value()
        say(line=shown)

        # Results by their number, and lists of them.
        by_id = f"{RESULTS}/GetResultById"
        for part in range(newest - 20, newest + 1):
            _, result, error = await line.call(by_id, *wanted(part))
            assert error == 0 and json.loads(result)["part"] == part
        await line.fails("BadNotFound", by_id, *wanted(5))
        await line.fails("BadNotFound", by_id, *wanted("; drop"))
        by_filter = f"{RESULTS}/GetResultListFiltered"

        async def parts(**filter):
            complete, count, _, results, error = await line.call(by_filter, *listed(**filter))
            assert error == 0 and count == len(results or [])
            return complete, [json.loads(result)["part"] for result in results or []]

        assert await parts(most=3) == (False, [newest, newest - 1, newest - 2])
        assert await parts(most=2, start=2) == (False, [newest - 2, newest - 3])
        assert await parts(part=str(newest - 7)) == (True, [newest - 7])
        assert await parts(recipe="other") == (True, [])
        assert await parts(product="x") == (True, [])
        _, failed = await parts(state=4)
        assert failed and all((part - (1 << 40)) % 7 == 0 for part in failed), failed
        _, every = await parts()
        assert every == sorted(every, reverse=True)

        # Nothing can be written: a verdict least of all.
        for path in f"{RESULTS}/Results/Latest", f"{RESULTS}/Results/Latest/ResultContent", f"{SYSTEM}/Line/Accepted":
            node = line.node(path)
            try:
                await node.write_value(await node.read_value(), await node.read_data_type_as_variant_type())
            except ua.UaStatusCodeError as error:
                assert type(error).__name__ in ("BadNotWritable", "BadUserAccessDenied", "BadServiceUnsupported"), error
            else:
                raise AssertionError(f"{path} was written")

        # Commands.
        start_job = f"{AUTOMATIC}/StartSingleJob"
        part, missed = await line.call(start_job, *job())
        say(started=int(part), missed=missed)
        part, missed = await line.call(start_job, *job("right"))
        say(started=int(part), missed=missed)
        await line.fails("BadInvalidArgument", start_job, *job("left"))
        await line.fails("BadInvalidArgument", start_job, *job("nowhere"))
        await line.fails("BadNotSupported", start_job, string(), string("M-42"), *job()[2:])
        await line.fails("BadArgumentsMissing", start_job)
        for path in f"{AUTOMATIC}/Stop", f"{AUTOMATIC}/Abort", f"{MACHINE}/Halt", f"{MACHINE}/Reset":
            await line.fails("BadNotSupported", path, *CAUSE)
        await line.fails("BadNotSupported", f"{AUTOMATIC}/StartContinuous", *job())
        await line.call(f"{MACHINE}/ConfirmAll", ua.LocalizedText("seen"))
        say(confirmed=True)
        await compare(line)


async def look():
    async with await client() as connected:
        line = await Line.of(connected)
        _, _, error = await line.call(f"{RESULTS}/GetResultById", *wanted(COUNT))
        assert error == 0
        denied = "BadUserAccessDenied"
        await line.fails(denied, f"{AUTOMATIC}/StartSingleJob", *job())
        await line.fails(denied, f"{MACHINE}/ConfirmAll", ua.LocalizedText("seen"))
        await line.fails(denied, f"{MACHINE}/Halt", *CAUSE)
        say(looked=True)


async def compare(line):
    """Every node with a name of the standard against the NodeSet: types and states by their numbers too."""
    path = os.environ.get("INSPECTD_NODESET")
    if path is None:
        say(compared=0)
        return
    names = {}
    for node in xml.etree.ElementTree.parse(path).getroot():
        name = node.get("BrowseName")
        if name is not None and name.startswith("1:"):
            names.setdefault(name[2:], set()).add(node.get("NodeId"))
    compared, waiting, seen = 0, [line.node(SYSTEM)], set()
    for number in 1003, 1007, 1016, 1017, 1021, 2002:
        waiting.append(line.client.get_node(ua.NodeId(number, line.vision)))
    while waiting:
        node = waiting.pop()
        if node.nodeid in seen:
            continue
        seen.add(node.nodeid)
        name = await node.read_browse_name()
        if name.NamespaceIndex == line.vision:
            assert name.Name in names, name
            if node.nodeid.NamespaceIndex == line.vision:
                assert f"ns=1;i={node.nodeid.Identifier}" in names[name.Name], (name, node.nodeid)
            compared += 1
        waiting += await node.get_children()
    say(compared=compared)


logging.disable(logging.CRITICAL)
asyncio.run({"enter": enter, "watch": watch, "ask": ask, "look": look}[MODE]())
