//! What a client can call. Names, order and number of the arguments are those of OPC 40100-1; where the
//! standard has a structure around one string, that string. What this daemon cannot do it says so of
//! (`BadNotSupported`).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use opcua::server::address_space::AddressSpace;
use opcua::server::diagnostics::NamespaceMetadata;
use opcua::server::node_manager::memory::InMemoryNodeManagerImpl;
use opcua::server::node_manager::{MethodCall, RequestContext, ServerContext};
use opcua::sync::RwLock;
use opcua::types::{DataTypeId, NodeId, StatusCode, Variant};
use tokio::time::sleep;

use super::nodes::{PartResult, strings};
use super::server::clock;
use crate::journal::plain;
use crate::output::Controls;
use crate::trigger::{Answer, Port};

/// The methods that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    GetResultById,
    GetResultListFiltered,
    StartSingleJob,
    ConfirmAll,
    StartContinuous,
    Stop,
    Abort,
    Halt,
    Reset,
}

pub struct Argument {
    pub name: &'static str,
    pub data_type: DataTypeId,
    pub is_array: bool,
}

pub struct Signature {
    pub name: &'static str,
    pub takes: &'static [Argument],
    pub gives: &'static [Argument],
}

const fn one(name: &'static str, data_type: DataTypeId) -> Argument {
    Argument { name, data_type, is_array: false }
}

const fn many(name: &'static str, data_type: DataTypeId) -> Argument {
    Argument { name, data_type, is_array: true }
}

const CAUSE: &[Argument] =
    &[one("Cause", DataTypeId::Int32), one("CauseDescription", DataTypeId::String)];
const COMMENT: &[Argument] = &[one("Comment", DataTypeId::LocalizedText)];
const ERROR: &[Argument] = &[one("Error", DataTypeId::Int32)];
const JOB: &[Argument] = &[
    one("MeasId", DataTypeId::String),
    one("PartId", DataTypeId::String),
    one("RecipeId", DataTypeId::String),
    one("ProductId", DataTypeId::String),
    many("Parameters", DataTypeId::String),
];
const STARTED: &[Argument] = &[one("JobId", DataTypeId::String), one("Error", DataTypeId::Int32)];
const WANTED: &[Argument] =
    &[one("ResultId", DataTypeId::String), one("Timeout", DataTypeId::Int32)];
const FOUND: &[Argument] = &[
    one("ResultHandle", DataTypeId::UInt32),
    one("Result", DataTypeId::String),
    one("Error", DataTypeId::Int32),
];
const FILTER: &[Argument] = &[
    one("ResultState", DataTypeId::Int32),
    one("MeasId", DataTypeId::String),
    one("PartId", DataTypeId::String),
    one("ExternalRecipeId", DataTypeId::String),
    one("InternalRecipeId", DataTypeId::String),
    one("ExternalConfigurationId", DataTypeId::String),
    one("InternalConfigurationId", DataTypeId::String),
    one("ProductId", DataTypeId::String),
    one("JobId", DataTypeId::String),
    one("MaxResults", DataTypeId::UInt32),
    one("StartIndex", DataTypeId::UInt32),
    one("Timeout", DataTypeId::Int32),
];
const LIST: &[Argument] = &[
    one("IsComplete", DataTypeId::Boolean),
    one("ResultCount", DataTypeId::UInt32),
    one("ResultHandle", DataTypeId::UInt32),
    many("ResultList", DataTypeId::String),
    one("Error", DataTypeId::Int32),
];

impl Method {
    pub const ALL: [Method; 9] = [
        Method::GetResultById,
        Method::GetResultListFiltered,
        Method::StartSingleJob,
        Method::ConfirmAll,
        Method::StartContinuous,
        Method::Stop,
        Method::Abort,
        Method::Halt,
        Method::Reset,
    ];

    pub fn signature(self) -> Signature {
        let (name, takes, gives): (_, &[_], &[_]) = match self {
            Method::GetResultById => ("GetResultById", WANTED, FOUND),
            Method::GetResultListFiltered => ("GetResultListFiltered", FILTER, LIST),
            Method::StartSingleJob => ("StartSingleJob", JOB, STARTED),
            Method::ConfirmAll => ("ConfirmAll", COMMENT, &[]),
            Method::StartContinuous => ("StartContinuous", JOB, STARTED),
            Method::Stop => ("Stop", CAUSE, ERROR),
            Method::Abort => ("Abort", CAUSE, ERROR),
            Method::Halt => ("Halt", CAUSE, ERROR),
            Method::Reset => ("Reset", CAUSE, ERROR),
        };
        Signature { name, takes, gives }
    }

    /// Whether it does more than look.
    fn commands(self) -> bool {
        !matches!(self, Method::GetResultById | Method::GetResultListFiltered)
    }
}

/// The newest results, the oldest first, up to a number.
pub struct Kept {
    results: VecDeque<Arc<PartResult>>,
    room: usize,
}

impl Kept {
    pub fn new(room: usize) -> Kept {
        Kept { results: VecDeque::new(), room }
    }

    pub fn push(&mut self, result: Arc<PartResult>) {
        if self.results.len() == self.room {
            self.results.pop_front();
        }
        self.results.push_back(result);
    }

    fn by_id(&self, id: &str) -> Option<Arc<PartResult>> {
        self.results.iter().rev().find(|result| result.id == id).cloned()
    }
}

/// What the threads of the line and the methods share.
pub struct Shared {
    pub kept: Mutex<Kept>,
    /// Whether the last status said that a part that comes now is inspected.
    pub ready: AtomicBool,
}

/// How long the camera's thread may take to number a part; it looks every few milliseconds.
const NUMBERED_WITHIN: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Results that one list may hold, so that it fits a message.
const MOST_LISTED: usize = 1000;

/// Answers the calls, and serves the nodes that the server reads by itself.
pub struct Methods {
    pub shared: Arc<Shared>,
    pub controls: Controls,
    pub cameras: Vec<Arc<str>>,
    /// By node.
    pub methods: HashMap<NodeId, Method>,
    /// Who may do more than look.
    pub commanders: BTreeSet<String>,
    pub namespaces: Vec<NamespaceMetadata>,
}

type Outputs = Result<Vec<Variant>, StatusCode>;

#[async_trait]
impl InMemoryNodeManagerImpl for Methods {
    async fn init(&self, _space: &mut AddressSpace, _context: ServerContext) {}

    fn name(&self) -> &str {
        "inspectd"
    }

    fn namespaces(&self) -> Vec<NamespaceMetadata> {
        self.namespaces.clone()
    }

    async fn call(
        &self,
        context: &RequestContext,
        _space: &RwLock<AddressSpace>,
        calls: &mut [&mut &mut MethodCall],
    ) -> Result<(), StatusCode> {
        for call in calls {
            let Some(&method) = self.methods.get(call.method_id()) else { continue };
            match self.answer(method, &context.token.0, call.arguments()).await {
                Ok(outputs) => {
                    call.set_outputs(outputs);
                    call.set_status(StatusCode::Good);
                }
                Err(status) => call.set_status(status),
            }
        }
        Ok(())
    }
}

impl Methods {
    async fn answer(&self, method: Method, user: &str, arguments: &[Variant]) -> Outputs {
        if method.commands() && !self.commanders.contains(user) {
            return Err(StatusCode::BadUserAccessDenied);
        }
        // More of them the server has refused.
        if arguments.len() < method.signature().takes.len() {
            return Err(StatusCode::BadArgumentsMissing);
        }
        match method {
            Method::GetResultById => self.result_by_id(arguments),
            Method::GetResultListFiltered => self.list(arguments),
            Method::StartSingleJob => self.start(user, arguments).await,
            Method::ConfirmAll => {
                log::info!("opcua_confirm_all user=\"{}\"", plain(user));
                self.controls.clear_alarms();
                Ok(Vec::new())
            }
            // Cameras that run by themselves go on, and only systemd stops the daemon.
            Method::StartContinuous
            | Method::Stop
            | Method::Abort
            | Method::Halt
            | Method::Reset => Err(StatusCode::BadNotSupported),
        }
    }

    /// The timeout says how long the client would need a file of the result; there are no files.
    fn result_by_id(&self, arguments: &[Variant]) -> Outputs {
        let [Variant::String(id), Variant::Int32(_)] = arguments else {
            return Err(StatusCode::BadInvalidArgument);
        };
        let kept = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let result = kept.by_id(id.as_ref()).ok_or(StatusCode::BadNotFound)?;
        Ok(vec![0u32.into(), result.content.clone().into(), 0i32.into()])
    }

    /// The newest first. What no result of ours has matches none.
    fn list(&self, arguments: &[Variant]) -> Outputs {
        let [Variant::Int32(state), texts @ .., most, start, Variant::Int32(_)] = arguments else {
            return Err(StatusCode::BadInvalidArgument);
        };
        let (Variant::UInt32(most), Variant::UInt32(start)) = (most, start) else {
            return Err(StatusCode::BadInvalidArgument);
        };
        let text = |text: &Variant| match text {
            Variant::String(text) => Ok(text.as_ref().to_owned()),
            _ => Err(StatusCode::BadInvalidArgument),
        };
        let texts = texts.iter().map(text).collect::<Result<Vec<String>, _>>()?;
        let [meas, part, their_recipe, recipe, their_config, config, product, job] = &texts[..]
        else {
            return Err(StatusCode::BadInvalidArgument);
        };
        let foreign = [meas, their_recipe, their_config, config, product];
        let matches = |result: &PartResult| {
            foreign.iter().all(|text| text.is_empty())
                && (*state == 0 || *state == result.state as i32)
                && [part, job].iter().all(|id| id.is_empty() || **id == result.id)
                && (recipe.is_empty() || *recipe == result.recipe)
        };
        let kept = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = kept.results.iter().rev().filter(|result| matches(result));
        let most = if *most == 0 { MOST_LISTED } else { MOST_LISTED.min(*most as usize) };
        let listed: Vec<_> = found.by_ref().skip(*start as usize).take(most).cloned().collect();
        let is_complete = found.next().is_none();
        Ok(vec![
            is_complete.into(),
            (listed.len() as u32).into(),
            0u32.into(),
            strings(listed.iter().map(|result| result.content.as_str())),
            0i32.into(),
        ])
    }

    /// Triggers a part, as a PLC would, and answers its number.
    async fn start(&self, user: &str, arguments: &[Variant]) -> Outputs {
        let [ids @ .., parameters] = arguments else { return Err(StatusCode::BadInvalidArgument) };
        for id in ids {
            let Variant::String(id) = id else { return Err(StatusCode::BadInvalidArgument) };
            // No result would carry it, and the recipe is that of the config.
            if !id.is_empty() {
                return Err(StatusCode::BadNotSupported);
            }
        }
        let (camera, port) = self.port(parameters)?;
        let ready = self.shared.ready.load(Ordering::SeqCst);
        let asked = port.ask(clock(), None, ready).ok_or(StatusCode::BadShutdown)?;
        let part = numbered(&asked).await?;
        let missed = asked.missed();
        log::info!(
            "opcua_start user=\"{}\" camera={camera} part={part} missed={missed}",
            plain(user)
        );
        Ok(vec![part.to_string().into(), i32::from(missed).into()])
    }

    /// The camera that the first of the parameters names; without any, the only one that is triggered.
    fn port(&self, parameters: &Variant) -> Result<(&str, &Port), StatusCode> {
        let name = match parameters {
            Variant::Empty => None,
            Variant::Array(array) => match &array.values[..] {
                [] => None,
                [Variant::String(name)] => Some(name),
                _ => return Err(StatusCode::BadInvalidArgument),
            },
            _ => return Err(StatusCode::BadInvalidArgument),
        };
        let ports = self.cameras.iter().zip(&self.controls.triggers);
        let mut fitting = ports
            .filter(|(camera, _)| name.is_none_or(|name| name.as_ref() == &***camera))
            .filter_map(|(camera, port)| Some((&**camera, port.as_ref()?)));
        match (fitting.next(), fitting.next()) {
            (Some(one), None) => Ok(one),
            _ => Err(StatusCode::BadInvalidArgument),
        }
    }
}

/// The part's number, when the camera's thread has given it.
async fn numbered(asked: &Answer) -> Result<u64, StatusCode> {
    let until = clock() + NUMBERED_WITHIN;
    loop {
        match asked.part() {
            Some(part) => return Ok(part.0),
            None if clock() >= until => return Err(StatusCode::BadTimeout),
            None => sleep(LOOK_EVERY).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::frame::{FrameId, PartId};
    use crate::output::Outcome;
    use crate::verdict::{Cause, Verdict};

    fn methods(room: usize, parts: std::ops::RangeInclusive<u64>) -> Methods {
        let mut kept = Kept::new(room);
        for part in parts {
            let uninspected = part.is_multiple_of(3);
            let outcome = Outcome {
                part: PartId(part),
                frame: FrameId { camera: 0, seq: part },
                camera: "left".into(),
                name: "".into(),
                verdict: if uninspected {
                    Verdict::Reject(Cause::TooLate)
                } else {
                    Verdict::Accept
                },
                score: None,
                threshold: None,
                region: None,
                position: None,
                latency: Duration::ZERO,
                triggered_at: SystemTime::UNIX_EPOCH,
                image: None,
                reason: None,
                truth: None,
            };
            kept.push(Arc::new(PartResult::of(&outcome, "cap")));
        }
        Methods {
            shared: Arc::new(Shared { kept: Mutex::new(kept), ready: AtomicBool::new(true) }),
            controls: Controls::default(),
            cameras: Vec::new(),
            methods: HashMap::new(),
            commanders: BTreeSet::new(),
            namespaces: Vec::new(),
        }
    }

    #[test]
    fn the_oldest_results_make_room() {
        let methods = methods(4, 1..=10);
        for (part, found) in [(6, false), (7, true), (10, true), (11, false)] {
            let answer = methods.result_by_id(&[part.to_string().into(), 0i32.into()]);
            assert_eq!(answer.is_ok(), found, "{part}");
        }
        let answer = methods.result_by_id(&[7u32.into(), 0i32.into()]);
        assert_eq!(answer.unwrap_err(), StatusCode::BadInvalidArgument);
    }

    #[test]
    fn lists_say_whether_there_is_more() {
        struct Case {
            state: i32,
            recipe: &'static str,
            most: u32,
            start: u32,
            is_complete: bool,
            count: u32,
        }
        let methods = methods(5000, 1..=3000);
        let all = Case { state: 0, recipe: "", most: 0, start: 0, is_complete: false, count: 1000 };
        for case in [
            Case { start: 2000, is_complete: true, ..all },
            Case { most: 9, count: 9, ..all },
            Case { start: 2995, most: 5, is_complete: true, count: 5, ..all },
            Case { start: 4000, is_complete: true, count: 0, ..all },
            Case { state: 4, is_complete: true, ..all },
            Case { recipe: "cap", ..all },
            Case { recipe: "lid", is_complete: true, count: 0, ..all },
            all,
        ] {
            let mut arguments = vec![Variant::from(case.state)];
            arguments.extend(["", "", "", case.recipe, "", "", "", ""].map(Variant::from));
            arguments.extend([case.most, case.start].map(Variant::from));
            arguments.push(0i32.into());
            let outputs = methods.list(&arguments).unwrap();
            let want = [Variant::from(case.is_complete), Variant::from(case.count)];
            assert_eq!(outputs[..2], want, "{} {} {}", case.state, case.recipe, case.start);
        }
    }
}
