//! Sets a camera's features (GenICam) as the file says, and makes sure that they are set.
//!
//! A camera may accept a value and keep another: it clamps, rounds, or ignores what does not fit
//! its mode. A line must not run like that, so each value is read back from the camera itself.

use std::fmt;

use serde::Deserialize;

/// A feature's name and what it shall be.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Setting(pub String, pub Value);

/// What a feature is set to. A command takes `true`: it is executed.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Value {
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
}

impl Value {
    pub fn is_finite(&self) -> bool {
        !matches!(self, Value::Float(value) if !value.is_finite())
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Bool(value) => value.fmt(f),
            Value::Integer(value) => value.fmt(f),
            Value::Float(value) => value.fmt(f),
            Value::Text(value) => write!(f, "{value:?}"),
        }
    }
}

/// The kinds of features that can be set.
#[cfg(any(feature = "gige", test))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bool,
    Integer,
    Float,
    /// One of a list of names.
    Choice,
    Text,
    Command,
}

/// The features of a camera, or of a test's stand-in.
#[cfg(any(feature = "gige", test))]
pub trait Features {
    /// `None`: there is no such feature.
    fn kind(&mut self, name: &str) -> Option<Kind>;

    /// `value` is of the feature's kind: a choice is a text, a command is `true`.
    fn write(&mut self, name: &str, value: &Value) -> Result<(), String>;

    /// What the camera itself says now.
    fn read(&mut self, name: &str) -> Result<Value, String>;

    /// What the feature can be set to, for a person, where it is known.
    fn allowed(&mut self, name: &str) -> Option<String>;

    /// Names of features that look like this one.
    fn like(&self, name: &str) -> Vec<String>;
}

/// Writes the settings in their order and compares what the camera then says. The error names
/// feature, both values and what is allowed.
#[cfg(any(feature = "gige", test))]
pub fn apply(camera: &mut impl Features, settings: &[Setting]) -> Result<(), String> {
    settings.iter().try_for_each(|Setting(name, value)| set(camera, name, value))
}

#[cfg(any(feature = "gige", test))]
fn set(camera: &mut impl Features, name: &str, asked: &Value) -> Result<(), String> {
    let Some(kind) = camera.kind(name) else {
        let like = camera.like(name);
        let like = if like.is_empty() {
            "its description lists what there is".to_owned()
        } else {
            format!("there is {}", like.join(", "))
        };
        return Err(format!("features: this camera has no {name}; {like}"));
    };
    let allowed = |camera: &mut dyn FnMut(&str) -> Option<String>| {
        camera(name).map_or_else(String::new, |allowed| format!("; it takes {allowed}"))
    };
    let value = match (kind, asked) {
        (Kind::Float, Value::Integer(whole)) => Value::Float(*whole as f64),
        (Kind::Bool, Value::Bool(_))
        | (Kind::Integer, Value::Integer(_))
        | (Kind::Float, Value::Float(_))
        | (Kind::Choice | Kind::Text, Value::Text(_))
        | (Kind::Command, Value::Bool(true)) => asked.clone(),
        _ => {
            let wants = match kind {
                Kind::Bool => "true or false",
                Kind::Integer => "a whole number",
                Kind::Float => "a number",
                Kind::Choice => "one of its names",
                Kind::Text => "a text",
                Kind::Command => "true, to be executed",
            };
            let allowed = allowed(&mut |name| camera.allowed(name));
            return Err(format!("features: {name} = {asked}, but it takes {wants}{allowed}"));
        }
    };
    camera.write(name, &value).map_err(|error| {
        let allowed = allowed(&mut |name| camera.allowed(name));
        format!("features: {name} = {asked} was refused: {error}{allowed}")
    })?;
    if kind == Kind::Command {
        return Ok(());
    }
    let read = camera
        .read(name)
        .map_err(|error| format!("features: {name} = {asked} can't be read back: {error}"))?;
    if agree(&value, &read) {
        return Ok(());
    }
    let allowed = allowed(&mut |name| camera.allowed(name));
    Err(format!("features: {name} = {asked} was asked, the camera has {read}{allowed}"))
}

/// Cameras keep times, gains and rates on a grid of their own; beyond one part in a hundred it is
/// another value.
#[cfg(any(feature = "gige", test))]
fn agree(asked: &Value, read: &Value) -> bool {
    match (asked, read) {
        (Value::Float(asked), Value::Float(read)) => {
            (asked - read).abs() <= 0.01 * asked.abs().max(0.1)
        }
        _ => asked == read,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps what is written, in the camera's own way.
    #[derive(Default)]
    struct Fake {
        written: Vec<String>,
        width: i64,
        exposure: f64,
        selected: String,
    }

    impl Features for Fake {
        fn kind(&mut self, name: &str) -> Option<Kind> {
            Some(match name {
                "Width" => Kind::Integer,
                "ExposureTime" => Kind::Float,
                "TriggerSelector" => Kind::Choice,
                "UserSetLoad" => Kind::Command,
                _ => return None,
            })
        }

        fn write(&mut self, name: &str, value: &Value) -> Result<(), String> {
            self.written.push(format!("{name} = {value}"));
            match value {
                Value::Integer(value) => self.width = (*value).min(2048) / 4 * 4,
                Value::Float(value) => self.exposure = (value / 35.0).round() * 35.0,
                Value::Text(value) if value == "Nothing" => return Err("no such entry".into()),
                Value::Text(value) => self.selected = value.clone(),
                Value::Bool(_) => {}
            }
            Ok(())
        }

        fn read(&mut self, name: &str) -> Result<Value, String> {
            Ok(match name {
                "Width" => Value::Integer(self.width),
                "ExposureTime" => Value::Float(self.exposure),
                _ => Value::Text(self.selected.clone()),
            })
        }

        fn allowed(&mut self, name: &str) -> Option<String> {
            (name == "Width").then(|| "4 to 2048 in steps of 4".to_owned())
        }

        fn like(&self, name: &str) -> Vec<String> {
            if name == "ExposureTimeAbs" { vec!["ExposureTime".to_owned()] } else { vec![] }
        }
    }

    fn setting(name: &str, value: Value) -> Setting {
        Setting(name.to_owned(), value)
    }

    #[test]
    fn settings_are_written_in_their_order_and_commands_executed() {
        let mut camera = Fake::default();
        let settings = [
            setting("UserSetLoad", Value::Bool(true)),
            setting("TriggerSelector", Value::Text("LineStart".into())),
            setting("Width", Value::Integer(1024)),
            // On a grid of 35: 10010 is within one part in a hundred.
            setting("ExposureTime", Value::Integer(10_000)),
            setting("TriggerSelector", Value::Text("FrameStart".into())),
        ];
        apply(&mut camera, &settings).unwrap();
        let written = [
            "UserSetLoad = true",
            "TriggerSelector = \"LineStart\"",
            "Width = 1024",
            "ExposureTime = 10000",
            "TriggerSelector = \"FrameStart\"",
        ];
        assert_eq!(camera.written, written);
    }

    #[test]
    fn what_the_camera_does_not_take_is_told_with_both_values_and_the_range() {
        for (name, value, says) in [
            (
                "Width",
                Value::Integer(1001),
                "Width = 1001 was asked, the camera has 1000; it takes 4 to 2048 in steps of 4",
            ),
            ("ExposureTime", Value::Float(50.0), "ExposureTime = 50 was asked, the camera has 35"),
            ("TriggerSelector", Value::Text("Nothing".into()), "was refused: no such entry"),
            ("Width", Value::Float(1.5), "it takes a whole number; it takes 4 to 2048"),
            ("UserSetLoad", Value::Bool(false), "it takes true, to be executed"),
            ("ExposureTimeAbs", Value::Float(1.0), "no ExposureTimeAbs; there is ExposureTime"),
            ("Nonsense", Value::Float(1.0), "has no Nonsense"),
        ] {
            let error = apply(&mut Fake::default(), &[setting(name, value)]).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn an_error_ends_the_settings() {
        let mut camera = Fake::default();
        let settings = [
            setting("Width", Value::Integer(3)),
            setting("TriggerSelector", Value::Text("LineStart".into())),
        ];
        apply(&mut camera, &settings).unwrap_err();
        assert_eq!(camera.written, ["Width = 3"]);
    }
}
