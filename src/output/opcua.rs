//! The line for SCADA, MES and other vendors' clients: an OPC UA server whose names and states are those
//! of OPC 40100-1 (OPC UA for Machine Vision). What it shows and what it can be told is in
//! `docs/opcua.md`. A verdict is only ever reported here; no call can change one.
//!
//! The wire has a thread of its own: the server, all its connections and the nodes live there. The
//! output thread only hands news over (`handover.rs`): a client that stands still holds up
//! nobody.
//!
//! Only built with the feature `opcua`; without it the table of the config is refused.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, ensure};
use serde::Deserialize;

use super::{Controls, RejectOutput};

#[cfg(feature = "opcua")]
mod methods;
#[cfg(feature = "opcua")]
mod nodes;
#[cfg(feature = "opcua")]
mod server;

const NOT_BUILT: &str =
    "[output.opcua]: this inspectd was built without OPC UA: build with --features opcua";

/// `[output.opcua]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where clients connect.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Name or address that clients reach this machine by, where it is not that of `listen`: the
    /// server names itself so in the endpoints that it offers and in its certificate.
    pub host: Option<String>,
    /// The server's key and certificate, which are made at the first start, and the certificates of
    /// the clients, trusted and rejected.
    pub pki_folder: PathBuf,
    /// Who may log in.
    #[serde(default, rename = "user")]
    pub users: Vec<User>,
    /// For tests: an endpoint besides the secured ones that asks for nothing, encrypts nothing and
    /// only shows.
    #[serde(default)]
    pub anonymous: bool,
    /// How many of the newest results are kept for `GetResultById` and `GetResultListFiltered`.
    #[serde(default = "default_results")]
    pub results: usize,
}

/// `[[output.opcua.user]]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    pub name: String,
    /// File whose first line is the password; kept out of the config, which more people read.
    pub password_file: PathBuf,
    /// Whether this user may trigger parts and clear the gate's alarms; else only look.
    #[serde(default)]
    pub commands: bool,
}

fn default_listen() -> SocketAddr {
    (std::net::Ipv4Addr::LOCALHOST, 4840).into()
}

fn default_results() -> usize {
    1000
}

impl Config {
    /// Refuses what cannot be meant, and the whole table where this build has no OPC UA.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.host.is_some() || !self.listen.ip().is_unspecified(),
            "output.opcua.listen = \"{}\" is every address of this machine, and clients must be told one: \
             give output.opcua.host",
            self.listen
        );
        if let Some(host) = &self.host {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:[]".contains(c);
            ensure!(
                !host.is_empty() && host.chars().all(plain),
                "output.opcua.host = \"{host}\" is no name or address of a machine"
            );
        }
        ensure!(
            !self.pki_folder.as_os_str().is_empty(),
            "output.opcua.pki_folder is empty; name a folder that the daemon may write to"
        );
        ensure!(
            self.anonymous || !self.users.is_empty(),
            "[output.opcua]: nobody could log in; add an [[output.opcua.user]]"
        );
        for (index, user) in self.users.iter().enumerate() {
            ensure!(!user.name.is_empty(), "output.opcua.user.name is empty");
            // What the server calls whoever did not log in.
            ensure!(
                user.name != "ANONYMOUS",
                "output.opcua.user.name = \"ANONYMOUS\" has a meaning of its own; choose another"
            );
            ensure!(
                self.users[..index].iter().all(|other| other.name != user.name),
                "output.opcua.user.name = \"{}\" is given twice",
                user.name
            );
        }
        ensure!(
            (1..=100_000).contains(&self.results),
            "output.opcua.results = {} is not in 1..=100000",
            self.results
        );
        ensure!(cfg!(feature = "opcua"), NOT_BUILT);
        Ok(())
    }
}

/// What the wire shows of the line it belongs to, and what it commands.
pub struct Surroundings {
    /// The line's name.
    pub line: String,
    /// In the order of the config.
    pub cameras: Vec<Camera>,
    pub controls: Controls,
}

pub struct Camera {
    pub name: Arc<str>,
    /// The bundle that its parts are judged by: the recipe.
    pub bundle: Arc<str>,
}

/// Binds the server's port and makes its certificate where there is none. Nobody is answered before
/// [`RejectOutput::service`] runs.
///
/// # Errors
/// A config that can't be meant; a port that is taken; a password or a key that can't be read.
#[cfg(feature = "opcua")]
pub fn bind(config: &Config, surroundings: Surroundings) -> Result<Box<dyn RejectOutput>> {
    config.check()?;
    Ok(Box::new(server::OpcUa::bind(config, surroundings)?))
}

/// This build cannot: the feature `opcua` is off.
#[cfg(not(feature = "opcua"))]
pub fn bind(config: &Config, _surroundings: Surroundings) -> Result<Box<dyn RejectOutput>> {
    config.check()?;
    anyhow::bail!(NOT_BUILT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        toml::from_str(
            "pki_folder = \"opcua\"\n[[user]]\nname = \"scada\"\npassword_file = \"scada.password\"",
        )
        .unwrap()
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        type Change = fn(&mut Config);
        let cases: [(&str, Change); 8] = [
            ("give output.opcua.host", |config| config.listen = ([0, 0, 0, 0], 4840).into()),
            ("output.opcua.host = \"a b\"", |config| config.host = Some("a b".to_owned())),
            ("output.opcua.pki_folder is empty", |config| config.pki_folder = PathBuf::new()),
            ("nobody could log in", |config| config.users.clear()),
            ("output.opcua.user.name is empty", |config| config.users[0].name.clear()),
            ("\"ANONYMOUS\"", |config| config.users[0].name = "ANONYMOUS".to_owned()),
            ("\"scada\" is given twice", |config| config.users.push(config.users[0].clone())),
            ("output.opcua.results = 0", |config| config.results = 0),
        ];
        for (says, change) in cases {
            let mut changed = config();
            change(&mut changed);
            let error = changed.check().unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let unknown = toml::from_str::<Config>("pki_folder = \"p\"\nsecurity = \"None\"");
        assert!(unknown.unwrap_err().to_string().contains("security"));
    }

    #[test]
    fn nobody_is_let_in_unless_the_config_says_so() {
        let config = config();
        assert!(config.listen.ip().is_loopback() && !config.anonymous && !config.users[0].commands);
    }

    #[cfg(not(feature = "opcua"))]
    #[test]
    fn without_the_feature_the_table_is_refused_with_how_to_build() {
        let error = config().check().unwrap_err().to_string();
        assert!(error.ends_with("build with --features opcua"), "{error}");
    }

    #[cfg(feature = "opcua")]
    #[test]
    fn a_password_that_is_not_there_is_named() {
        assert!(config().check().is_ok());
        let folder = tempfile::tempdir().unwrap();
        let config = Config {
            listen: ([127, 0, 0, 1], 0).into(),
            pki_folder: folder.path().join("pki"),
            ..config()
        };
        let line = Surroundings {
            line: "a".to_owned(),
            cameras: Vec::new(),
            controls: Controls::default(),
        };
        let error = format!("{:#}", bind(&config, line).err().unwrap());
        assert!(error.contains("output.opcua.user.password_file = scada.password"), "{error}");
    }
}
