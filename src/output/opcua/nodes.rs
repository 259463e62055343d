//! The address space: which nodes there are and what they show. Names of the namespace `VISION` and
//! the numbers of their types and states are those of the NodeSet that the OPC Foundation publishes
//! with OPC 40100-1 (version 1.0.0); of its types only the names, the states and what is shown of them
//! are here. The nodes of this line lie in a namespace of ours and are called by their path.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opcua::server::address_space::{
    AddressSpace, MethodBuilder, ObjectBuilder, ObjectTypeBuilder, VariableBuilder,
    VariableTypeBuilder,
};
use opcua::types::{
    Argument, DataTypeId, DataValue, DateTime, LocalizedText, NodeId, ObjectId, ObjectTypeId,
    QualifiedName, StatusCode, VariableTypeId, Variant, VariantScalarTypeId,
};

use super::methods::Method;
use crate::output::{LineState, LineStatus, Outcome, Recorded};
use crate::tracker::Alarm;
use crate::verdict::{Cause, Verdict};

/// The namespace of OPC 40100-1.
pub const VISION: &str = "http://opcfoundation.org/UA/MachineVision";
/// The namespace of what this daemon has besides.
pub const OWN: &str = "urn:inspectd:line";

/// The results that are nodes, besides the newest: written round and round.
const SLOTS: usize = 10;

/// A type of the standard's namespace: its number there, its name, what it is a subtype of.
struct ObjectType {
    number: u32,
    name: &'static str,
    base: ObjectTypeId,
}

const VISION_SYSTEM_TYPE: ObjectType =
    ObjectType { number: 1003, name: "VisionSystemType", base: ObjectTypeId::BaseObjectType };
const RESULT_MANAGEMENT_TYPE: ObjectType =
    ObjectType { number: 1007, name: "ResultManagementType", base: ObjectTypeId::BaseObjectType };
const RESULT_FOLDER_TYPE: ObjectType =
    ObjectType { number: 1016, name: "ResultFolderType", base: ObjectTypeId::FolderType };
const STATE_MACHINE_TYPE: ObjectType = ObjectType {
    number: 1017,
    name: "VisionStateMachineType",
    base: ObjectTypeId::FiniteStateMachineType,
};
const AUTOMATIC_MODE_TYPE: ObjectType = ObjectType {
    number: 1021,
    name: "VisionAutomaticModeStateMachineType",
    base: ObjectTypeId::FiniteStateMachineType,
};
const OBJECT_TYPES: [ObjectType; 5] = [
    VISION_SYSTEM_TYPE,
    RESULT_MANAGEMENT_TYPE,
    RESULT_FOLDER_TYPE,
    STATE_MACHINE_TYPE,
    AUTOMATIC_MODE_TYPE,
];
/// `ResultType`, a type of variable.
const RESULT_TYPE: u32 = 2002;

/// A state of one of the machines: its number in the machine, its name, its node in the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    number: u32,
    name: &'static str,
    node: u32,
}

const PREOPERATIONAL: State = State { number: 1, name: "Preoperational", node: 5028 };
const HALTED: State = State { number: 2, name: "Halted", node: 5029 };
const ERROR: State = State { number: 3, name: "Error", node: 5030 };
const OPERATIONAL: State = State { number: 4, name: "Operational", node: 5031 };
const INITIALIZED: State = State { number: 5, name: "Initialized", node: 5056 };
const READY: State = State { number: 6, name: "Ready", node: 5057 };
const SINGLE_EXECUTION: State = State { number: 7, name: "SingleExecution", node: 5058 };
const CONTINUOUS_EXECUTION: State = State { number: 8, name: "ContinuousExecution", node: 5059 };

/// The state of the outer machine and, where it is operational, that of the automatic mode.
fn states(state: LineState) -> (State, Option<State>) {
    match state {
        LineState::Preoperational => (PREOPERATIONAL, None),
        LineState::Halted => (HALTED, None),
        LineState::Error => (ERROR, None),
        LineState::Initialized => (OPERATIONAL, Some(INITIALIZED)),
        LineState::Ready => (OPERATIONAL, Some(READY)),
        LineState::SingleExecution => (OPERATIONAL, Some(SINGLE_EXECUTION)),
        LineState::ContinuousExecution => (OPERATIONAL, Some(CONTINUOUS_EXECUTION)),
    }
}

/// One result as it is kept: every field that a client may ask for.
pub struct PartResult {
    /// Of the result, the part and the job: one part is one job and has one result.
    pub id: String,
    /// The bundle that judged it.
    pub recipe: String,
    pub state: ResultState,
    is_simulated: bool,
    /// Trigger and verdict.
    times: [DateTime; 2],
    /// What the archive's lists and MQTT say too.
    pub content: String,
}

/// `ResultStateDataType`, as far as it comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum ResultState {
    Completed = 1,
    /// The part was rejected without an inspection.
    Failed = 4,
}

impl PartResult {
    pub fn of(outcome: &Outcome, bundle: &str) -> PartResult {
        let image = outcome.image.as_ref().map(|path| path.display().to_string());
        // Numbers and strings are always JSON.
        let content = serde_json::to_string(&Recorded::of(outcome, image)).unwrap_or_default();
        PartResult {
            id: outcome.part.0.to_string(),
            recipe: bundle.to_owned(),
            state: match outcome.verdict {
                Verdict::Accept | Verdict::Reject(Cause::Anomaly) => ResultState::Completed,
                Verdict::Reject(_) => ResultState::Failed,
            },
            is_simulated: outcome.truth.is_some(),
            times: [outcome.triggered_at, outcome.triggered_at + outcome.latency].map(date_time),
            content,
        }
    }
}

/// 100 ns since the year 1601.
fn date_time(time: SystemTime) -> DateTime {
    const BEFORE_1970: i64 = 11_644_473_600 * 10_000_000;
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    DateTime::from(BEFORE_1970 + (since.as_nanos() / 100) as i64)
}

type Field = (&'static str, DataTypeId, fn(&PartResult) -> Variant);

/// The components of a variable of `ResultType`. Where the standard has a structure around one string,
/// they are that string.
const FIELDS: [Field; 10] = [
    ("ResultId", DataTypeId::String, |result| result.id.clone().into()),
    ("PartId", DataTypeId::String, |result| result.id.clone().into()),
    ("JobId", DataTypeId::String, |result| result.id.clone().into()),
    ("InternalRecipeId", DataTypeId::String, |result| result.recipe.clone().into()),
    ("IsPartial", DataTypeId::Boolean, |_| false.into()),
    ("IsSimulated", DataTypeId::Boolean, |result| result.is_simulated.into()),
    ("ResultState", DataTypeId::Int32, |result| (result.state as i32).into()),
    ("CreationTime", DataTypeId::UtcTime, |result| result.times[1].into()),
    ("ProcessingTimes", DataTypeId::UtcTime, |result| {
        (VariantScalarTypeId::DateTime, result.times.to_vec()).into()
    }),
    ("ResultContent", DataTypeId::String, |result| strings([result.content.as_str()])),
];

/// An array of strings.
pub fn strings<'a>(strings: impl IntoIterator<Item = &'a str>) -> Variant {
    let strings: Vec<Variant> = strings.into_iter().map(Variant::from).collect();
    (VariantScalarTypeId::String, strings).into()
}

/// Values to be shown, each at its node.
pub type Values = Vec<(NodeId, DataValue)>;

/// The nodes that change.
pub struct Nodes {
    vision: u16,
    state: Machine,
    automatic: Machine,
    latest: Shown,
    slots: Vec<Shown>,
    next_slot: usize,
    line: Counters,
}

/// A machine's `CurrentState`.
struct Machine {
    current: NodeId,
    id: NodeId,
    number: NodeId,
}

/// A variable of `ResultType`.
struct Shown {
    whole: NodeId,
    fields: Vec<NodeId>,
}

struct Counters {
    heartbeat: NodeId,
    beats: u32,
    epoch: NodeId,
    triggers: NodeId,
    accepted: NodeId,
    rejected: NodeId,
    in_flight: NodeId,
    causes: Vec<NodeId>,
    late_verdicts: NodeId,
    missed: NodeId,
    cameras_up: NodeId,
    alarms: NodeId,
    evidence_lost: NodeId,
}

/// The two namespaces by their numbers in this server, and the nodes so far.
struct Builder<'a> {
    space: &'a mut AddressSpace,
    vision: u16,
    own: u16,
}

impl Nodes {
    /// Builds everything below the folder `Objects`: `vision` and `own` are the numbers of [`VISION`]
    /// and [`OWN`], `cameras` their names. The methods' nodes are handed to `found`.
    pub fn build(
        space: &mut AddressSpace,
        [vision, own]: [u16; 2],
        cameras: &[&str],
        mut found: impl FnMut(NodeId, Method),
    ) -> Nodes {
        let mut builder = Builder { space, vision, own };
        builder.types();
        let system = "VisionSystem";
        let objects: NodeId = ObjectId::ObjectsFolder.into();
        // The standard names types and their parts; a system's own name is whoever's it is.
        ObjectBuilder::new(&builder.id(system), QualifiedName::new(own, system), system)
            .organized_by(objects)
            .has_type_definition(builder.of_type(&VISION_SYSTEM_TYPE))
            .insert(builder.space);

        let machine = builder.object(system, "VisionStateMachine", &STATE_MACHINE_TYPE);
        let automatic = builder.object(&machine, "AutomaticModeStateMachine", &AUTOMATIC_MODE_TYPE);
        let management = builder.object(system, "ResultManagement", &RESULT_MANAGEMENT_TYPE);
        let results = builder.object(&management, "Results", &RESULT_FOLDER_TYPE);
        for method in Method::ALL {
            let on = match method {
                Method::ConfirmAll | Method::Halt | Method::Reset => &machine,
                Method::StartSingleJob | Method::StartContinuous | Method::Stop | Method::Abort => {
                    &automatic
                }
                Method::GetResultById | Method::GetResultListFiltered => &management,
            };
            found(builder.method(on, method), method);
        }
        let state = builder.machine(&machine);
        let automatic = builder.machine(&automatic);
        let latest = builder.result(&results, "Latest");
        let slots =
            (1..=SLOTS).map(|slot| builder.result(&results, &format!("Result{slot}"))).collect();
        let line = builder.line(system, cameras);
        Nodes { vision, state, automatic, latest, slots, next_slot: 0, line }
    }

    /// A result, as the newest and in its slot.
    pub fn result(&mut self, result: &PartResult) -> Values {
        let slot = &self.slots[self.next_slot];
        self.next_slot = (self.next_slot + 1) % self.slots.len();
        let at = result.times[1];
        let mut values = Vec::with_capacity(2 * (FIELDS.len() + 1));
        // The whole comes last: who sees it change finds the fields of the same result.
        for shown in [slot, &self.latest] {
            for (node, (_, _, field)) in shown.fields.iter().zip(&FIELDS) {
                values.push((node.clone(), DataValue::new_at(field(result), at)));
            }
            values.push((shown.whole.clone(), DataValue::new_at(result.content.clone(), at)));
        }
        values
    }

    /// State, counters and heartbeat. `missed`: results that this wire has not had.
    pub fn status(&mut self, status: &LineStatus, missed: u64) -> Values {
        let (outer, inner) = states(status.state);
        let mut values = self.machine(&self.state, Some(outer));
        values.extend(self.machine(&self.automatic, inner));
        self.line.beats = self.line.beats.wrapping_add(1);
        let (line, tally) = (&self.line, &status.tally);
        let alarms = Alarm::ALL.into_iter().filter(|&alarm| status.alarms.stands(alarm));
        let mut show = |node: &NodeId, value: Variant| {
            values.push((node.clone(), DataValue::new_now(value)));
        };
        show(&line.epoch, status.epoch.into());
        show(&line.triggers, tally.triggers.into());
        show(&line.accepted, tally.accepted.into());
        show(&line.rejected, tally.rejected_total().into());
        show(&line.in_flight, tally.in_flight().into());
        for (node, cause) in line.causes.iter().zip(Cause::ALL) {
            show(node, tally.rejected_for(cause).into());
        }
        show(&line.late_verdicts, status.late_verdicts.into());
        show(&line.missed, missed.into());
        let up = status.cameras_up.clone();
        show(&line.cameras_up, (VariantScalarTypeId::Boolean, up).into());
        show(&line.alarms, strings(alarms.map(Alarm::word)));
        show(&line.evidence_lost, status.evidence_lost.into());
        show(&line.heartbeat, line.beats.into());
        values
    }

    /// `None`: the machine is not active.
    fn machine(&self, machine: &Machine, state: Option<State>) -> Values {
        let shown = match state {
            Some(State { number, name, node }) => [
                DataValue::new_now(LocalizedText::new("en", name)),
                DataValue::new_now(NodeId::new(self.vision, node)),
                DataValue::new_now(number),
            ],
            None => {
                [LocalizedText::null().into(), Variant::from(NodeId::null()), Variant::from(0u32)]
                    .map(|none| DataValue::new_now_status(none, StatusCode::BadStateNotActive))
            }
        };
        let nodes = [&machine.current, &machine.id, &machine.number];
        nodes.into_iter().cloned().zip(shown).collect()
    }
}

impl Builder<'_> {
    fn id(&self, path: &str) -> NodeId {
        NodeId::new(self.own, path)
    }

    fn of_type(&self, kind: &ObjectType) -> NodeId {
        NodeId::new(self.vision, kind.number)
    }

    /// The types' names, the states of the machines, and `ResultType`.
    fn types(&mut self) {
        for kind in &OBJECT_TYPES {
            let id = self.of_type(kind);
            ObjectTypeBuilder::new(&id, QualifiedName::new(self.vision, kind.name), kind.name)
                .subtype_of(kind.base)
                .insert(self.space);
        }
        let result = NodeId::new(self.vision, RESULT_TYPE);
        let name = "ResultType";
        VariableTypeBuilder::new(&result, QualifiedName::new(self.vision, name), name)
            .data_type(DataTypeId::BaseDataType)
            .subtype_of(VariableTypeId::BaseDataVariableType)
            .insert(self.space);
        let machines = [
            (&STATE_MACHINE_TYPE, [PREOPERATIONAL, HALTED, ERROR, OPERATIONAL]),
            (&AUTOMATIC_MODE_TYPE, [INITIALIZED, READY, SINGLE_EXECUTION, CONTINUOUS_EXECUTION]),
        ];
        for (machine, states) in machines {
            for state in states {
                let id = NodeId::new(self.vision, state.node);
                let initial = state == PREOPERATIONAL;
                let kind =
                    if initial { ObjectTypeId::InitialStateType } else { ObjectTypeId::StateType };
                ObjectBuilder::new(&id, QualifiedName::new(self.vision, state.name), state.name)
                    .component_of(self.of_type(machine))
                    .has_type_definition(kind)
                    .insert(self.space);
                VariableBuilder::new(
                    &self.id(&format!("States/{}/StateNumber", state.name)),
                    "StateNumber",
                    "StateNumber",
                )
                .property_of(id)
                .has_type_definition(VariableTypeId::PropertyType)
                .data_type(DataTypeId::UInt32)
                .value(state.number)
                .insert(self.space);
            }
        }
    }

    /// An object of the standard; answers its path.
    fn object(&mut self, parent: &str, name: &str, kind: &ObjectType) -> String {
        let path = format!("{parent}/{name}");
        ObjectBuilder::new(&self.id(&path), QualifiedName::new(self.vision, name), name)
            .component_of(self.id(parent))
            .has_type_definition(self.of_type(kind))
            .insert(self.space);
        path
    }

    fn method(&mut self, object: &str, method: Method) -> NodeId {
        let signature = method.signature();
        let id = self.id(&format!("{object}/{}", signature.name));
        let arguments = |arguments: &[super::methods::Argument]| -> Vec<Argument> {
            let shown = |argument: &super::methods::Argument| Argument {
                name: argument.name.into(),
                data_type: argument.data_type.into(),
                value_rank: if argument.is_array { 1 } else { -1 },
                array_dimensions: argument.is_array.then(|| vec![0]),
                description: LocalizedText::null(),
            };
            arguments.iter().map(shown).collect()
        };
        let name = QualifiedName::new(self.vision, signature.name);
        let mut builder =
            MethodBuilder::new(&id, name, signature.name).component_of(self.id(object));
        let child =
            |name: &str| NodeId::new(self.own, format!("{object}/{}/{name}", signature.name));
        if !signature.takes.is_empty() {
            let taken = arguments(signature.takes);
            builder = builder.input_args(self.space, &child("InputArguments"), &taken);
        }
        if !signature.gives.is_empty() {
            let given = arguments(signature.gives);
            builder = builder.output_args(self.space, &child("OutputArguments"), &given);
        }
        builder.insert(self.space);
        id
    }

    fn machine(&mut self, object: &str) -> Machine {
        let path = format!("{object}/CurrentState");
        let current = self.id(&path);
        VariableBuilder::new(&current, "CurrentState", "CurrentState")
            .component_of(self.id(object))
            .has_type_definition(VariableTypeId::FiniteStateVariableType)
            .data_type(DataTypeId::LocalizedText)
            .value(LocalizedText::null())
            .insert(self.space);
        let mut property = |name: &str, kind: DataTypeId, value: Variant| {
            let id = NodeId::new(self.own, format!("{path}/{name}"));
            VariableBuilder::new(&id, name, name)
                .property_of(current.clone())
                .has_type_definition(VariableTypeId::PropertyType)
                .data_type(kind)
                .value(value)
                .insert(self.space);
            id
        };
        let id = property("Id", DataTypeId::NodeId, NodeId::null().into());
        let number = property("Number", DataTypeId::UInt32, 0u32.into());
        Machine { current, id, number }
    }

    fn result(&mut self, folder: &str, name: &str) -> Shown {
        let path = format!("{folder}/{name}");
        let whole = self.id(&path);
        let waiting = |id: &NodeId, name: QualifiedName, kind: DataTypeId| {
            let mut builder =
                VariableBuilder::new(id, name.clone(), name.name.as_ref()).data_type(kind);
            if ["ProcessingTimes", "ResultContent"].contains(&name.name.as_ref()) {
                builder = builder.value_rank(1).array_dimensions(&[0]);
            }
            builder
        };
        waiting(&whole, QualifiedName::new(self.own, name), DataTypeId::String)
            .component_of(self.id(folder))
            .has_type_definition(NodeId::new(self.vision, RESULT_TYPE))
            .insert(self.space);
        let fields = FIELDS.iter().map(|&(name, kind, _)| {
            let id = NodeId::new(self.own, format!("{path}/{name}"));
            waiting(&id, QualifiedName::new(self.vision, name), kind)
                .component_of(whole.clone())
                .has_type_definition(VariableTypeId::BaseDataVariableType)
                .insert(self.space);
            id
        });
        Shown { fields: fields.collect(), whole }
    }

    /// What the standard has no place for: an object `Line`.
    fn line(&mut self, system: &str, cameras: &[&str]) -> Counters {
        let (own, path) = (self.own, format!("{system}/Line"));
        let folder = |space: &mut AddressSpace, path: &str, name: &str, parent: NodeId| {
            let id = NodeId::new(own, path);
            ObjectBuilder::new(&id, QualifiedName::new(own, name), name)
                .component_of(parent)
                .has_type_definition(ObjectTypeId::BaseObjectType)
                .insert(space);
            id
        };
        let system = self.id(system);
        let line = folder(self.space, &path, "Line", system);
        let causes = format!("{path}/RejectedByCause");
        let by_cause = folder(self.space, &causes, "RejectedByCause", line.clone());
        let mut variable =
            |parent: &NodeId, path: &str, name: &str, kind: DataTypeId, value: Variant| {
                let id = NodeId::new(own, format!("{path}/{name}"));
                let is_array = matches!(value, Variant::Array(_));
                let mut builder = VariableBuilder::new(&id, QualifiedName::new(own, name), name)
                    .component_of(parent.clone())
                    .has_type_definition(VariableTypeId::BaseDataVariableType)
                    .data_type(kind)
                    .value(value);
                if is_array {
                    builder = builder.value_rank(1).array_dimensions(&[0]);
                }
                builder.insert(self.space);
                id
            };
        let mut count = |name| variable(&line, &path, name, DataTypeId::UInt64, 0u64.into());
        let [triggers, accepted, rejected, in_flight, late_verdicts, missed] =
            ["Triggers", "Accepted", "Rejected", "InFlight", "LateVerdicts", "MissedResults"]
                .map(&mut count);
        let causes_of = Cause::ALL.map(|cause| {
            variable(&by_cause, &causes, cause.word(), DataTypeId::UInt64, 0u64.into())
        });
        variable(&line, &path, "Cameras", DataTypeId::String, strings(cameras.iter().copied()));
        let none_up = (VariantScalarTypeId::Boolean, vec![false; cameras.len()]).into();
        Counters {
            heartbeat: variable(&line, &path, "Heartbeat", DataTypeId::UInt32, 0u32.into()),
            beats: 0,
            epoch: variable(&line, &path, "Epoch", DataTypeId::UInt32, 0u32.into()),
            triggers,
            accepted,
            rejected,
            in_flight,
            causes: causes_of.to_vec(),
            late_verdicts,
            missed,
            cameras_up: variable(&line, &path, "CamerasUp", DataTypeId::Boolean, none_up),
            alarms: variable(&line, &path, "Alarms", DataTypeId::String, strings([])),
            evidence_lost: variable(
                &line,
                &path,
                "EvidenceLost",
                DataTypeId::Boolean,
                false.into(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_the_numbers_that_all_wires_say() {
        for state in [
            LineState::Preoperational,
            LineState::Halted,
            LineState::Error,
            LineState::Initialized,
            LineState::Ready,
            LineState::SingleExecution,
            LineState::ContinuousExecution,
        ] {
            let (outer, inner) = states(state);
            assert_eq!(inner.unwrap_or(outer).number, u32::from(state as u16), "{state:?}");
            assert_eq!(inner.is_some(), outer == OPERATIONAL, "{state:?}");
            assert_eq!(inner.unwrap_or(outer).name, format!("{state:?}"));
        }
    }

    #[test]
    fn times_are_those_of_the_wall_clock() {
        /* datetime.fromtimestamp(1777000000.5, timezone.utc).isoformat() */
        let time = date_time(UNIX_EPOCH + Duration::from_millis(1_777_000_000_500));
        assert!(time.to_rfc3339().starts_with("2026-04-24T03:06:40.5"), "{}", time.to_rfc3339());
        assert_eq!(date_time(UNIX_EPOCH - Duration::from_secs(1)), date_time(UNIX_EPOCH));
    }
}
