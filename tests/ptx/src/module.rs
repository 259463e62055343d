//! PTX, parsed: kernels with their parameters, shared arrays and instructions.

use std::collections::HashMap;

use crate::decode::Decoder;
use crate::fault::ParseError;
use crate::instruction::{Instruction, PARAM_SHIFT};
use crate::registers::Preset;
use crate::shared::GAP;
use crate::text::{self, Entry, Statement};

/// PTX, parsed.
pub struct Module {
    pub(crate) kernels: HashMap<String, Kernel>,
}

/// A `.param` of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    pub name: String,
    pub bytes: usize,
}

pub(crate) struct Kernel {
    pub name: String,
    pub params: Vec<Param>,
    pub code: Vec<Instruction>,
    pub counts: Counts,
    pub presets: Vec<(crate::registers::Register, Preset)>,
    pub shared: SharedLayout,
    /// Threads of a block in x, y, z, where the kernel says how many at most.
    pub max_threads: Option<[u32; 3]>,
    /// `__launch_bounds__` says how many at most, `.reqntid` exactly how many.
    pub exact_threads: bool,
    pub granules: Granules,
    pub files: Vec<(u32, String)>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub predicates: u32,
    pub words: u32,
    pub doubles: u32,
}

/// Narrowest accesses of global and of shared memory, as powers of two, at most four bytes: no two
/// of them share a piece of memory of this size but in whole.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Granules {
    pub global: u32,
    pub shared: u32,
}

/// Where shared arrays lie: apart from each other, so that none is reached from another.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedLayout {
    /// `None` for what the launch adds.
    names: HashMap<String, Option<usize>>,
    /// Places and lengths.
    pub arrays: Vec<(usize, usize)>,
    /// Alignment of what the launch adds, if the kernel has a name for it.
    pub dynamic: Option<usize>,
    end: usize,
}

impl Module {
    /// # Errors
    /// Anything that this interpreter does not know: it never guesses.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let text = text::without_comments(text);
        let cut = text::cut(&text)?;
        let mut kernels = HashMap::new();
        for entry in &cut.entries {
            let kernel = kernel(entry, &cut.arrays, &cut.files)?;
            if let Some(twice) = kernels.insert(kernel.name.clone(), kernel) {
                let detail = format!("two kernels are named {}", twice.name);
                return Err(ParseError { line: entry.line, detail });
            }
        }
        Ok(Self { kernels })
    }

    /// The parameters of a kernel.
    pub fn params(&self, entry: &str) -> Option<&[Param]> {
        Some(&self.kernels.get(entry)?.params)
    }

    /// The names of the kernels, sorted.
    pub fn entries(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.kernels.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }
}

fn kernel(
    entry: &Entry,
    module_arrays: &[Statement],
    files: &[(u32, String)],
) -> Result<Kernel, ParseError> {
    let fail = |detail: String| ParseError { line: entry.line, detail };
    let head = Head::parse(entry.head).map_err(fail)?;
    let mut shared = SharedLayout::default();
    // Arrays of the module that the kernel does not name are not in its share.
    let of_body = entry.body.iter().filter(|statement| statement.text.starts_with(".shared"));
    for statement in module_arrays.iter().chain(of_body) {
        let array = Array::parse(statement.text)
            .map_err(|detail| ParseError { line: statement.line, detail })?;
        let is_used = entry.body.iter().any(|statement| names(statement.text, array.name));
        if is_used {
            shared.add(&array);
        }
    }
    let mut decoder = Decoder::new(&head.params, &shared);
    for statement in &entry.body {
        decoder
            .statement(statement)
            .map_err(|detail| ParseError { line: statement.line, detail })?;
    }
    let decoded = decoder.finish().map_err(fail)?;
    Ok(Kernel {
        name: head.name,
        params: head.params,
        code: decoded.code,
        counts: decoded.counts,
        presets: decoded.presets,
        granules: decoded.granules,
        shared,
        max_threads: head.max_threads,
        exact_threads: head.exact_threads,
        files: files.to_vec(),
    })
}

/// Whether a name stands in a text as a whole word.
fn names(text: &str, name: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$');
    text.match_indices(name).any(|(at, _)| {
        !text[..at].ends_with(is_part) && !text[at + name.len()..].starts_with(is_part)
    })
}

struct Head {
    name: String,
    params: Vec<Param>,
    max_threads: Option<[u32; 3]>,
    exact_threads: bool,
}

impl Head {
    fn parse(text: &str) -> Result<Self, String> {
        let (_, text) = text.split_once(".entry").ok_or("not an entry")?;
        let (name, params, tail) = match text.split_once('(') {
            Some((name, rest)) => {
                let (params, tail) = rest.split_once(')').ok_or("parameters without an end")?;
                (name.trim(), params, tail)
            }
            None => {
                let name = text.split_whitespace().next().ok_or("an entry without a name")?;
                (name, "", text.trim_start().trim_start_matches(name))
            }
        };
        let params = params
            .split(',')
            .filter(|param| !param.trim().is_empty())
            .map(parameter)
            .collect::<Result<_, _>>()?;
        let mut head = Self { name: name.into(), params, max_threads: None, exact_threads: false };
        head.directives(tail)?;
        Ok(head)
    }

    fn directives(&mut self, text: &str) -> Result<(), String> {
        for directive in text.split('.').map(str::trim).filter(|text| !text.is_empty()) {
            let (name, values) =
                directive.split_once(char::is_whitespace).unwrap_or((directive, ""));
            match name {
                "maxntid" | "reqntid" => {
                    let mut threads = [1; 3];
                    for (to, value) in threads.iter_mut().zip(values.split(',')) {
                        *to = value.trim().parse().map_err(|_| format!("unknown .{directive}"))?;
                    }
                    self.max_threads = Some(threads);
                    self.exact_threads = name == "reqntid";
                }
                // How the card shares itself out; nothing that a kernel could see.
                "minnctapersm" | "maxnreg" => {}
                _ => return Err(format!("unknown directive .{name}")),
            }
        }
        Ok(())
    }
}

/// `.param .u32 name` or `.param .align 8 .b8 name[24]`
fn parameter(text: &str) -> Result<Param, String> {
    let array = Array::parse(text)?;
    let bytes = array.bytes.ok_or_else(|| format!("a parameter without an end: {text}"))?;
    Ok(Param { name: array.name.into(), bytes })
}

/// A piece of memory that is declared.
struct Array<'a> {
    name: &'a str,
    align: usize,
    /// `None` where the launch says it.
    bytes: Option<usize>,
}

impl<'a> Array<'a> {
    fn parse(text: &'a str) -> Result<Self, String> {
        let unknown = || format!("unknown declaration: {text}");
        let (declaration, dimensions) = match text.split_once('[') {
            Some((declaration, rest)) => (declaration, Some(rest)),
            None => (text, None),
        };
        let mut words: Vec<&str> = declaration.split_whitespace().collect();
        let name = words.pop().ok_or_else(unknown)?;
        let (mut align, mut size) = (None, None);
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            match word {
                ".param" | ".shared" | ".extern" => {}
                ".align" => {
                    let value = words.next().and_then(|value| value.parse::<usize>().ok());
                    align =
                        Some(value.filter(|value| value.is_power_of_two()).ok_or_else(unknown)?);
                }
                _ => size = Some(bytes_of(word.trim_start_matches('.')).ok_or_else(unknown)?),
            }
        }
        let size = size.ok_or_else(unknown)?;
        let bytes = match dimensions {
            None => Some(size),
            Some(text) if text.trim_start().starts_with(']') => None,
            Some(text) => {
                let mut bytes = size;
                for count in text.split('[') {
                    let count: usize =
                        count.trim().trim_end_matches(']').parse().map_err(|_| unknown())?;
                    bytes *= count;
                }
                Some(bytes)
            }
        };
        Ok(Self { name, align: align.unwrap_or(size), bytes })
    }
}

/// Bytes of a value of a type.
pub(crate) fn bytes_of(kind: &str) -> Option<usize> {
    let digits = kind.trim_start_matches("bf").trim_start_matches(['b', 'u', 's', 'f']);
    match digits {
        "8" => Some(1),
        "16" => Some(2),
        "32" | "16x2" => Some(4),
        "64" => Some(8),
        _ => None,
    }
}

impl SharedLayout {
    fn add(&mut self, array: &Array) {
        let start = self.end.next_multiple_of(array.align.max(16));
        self.names.insert(array.name.into(), array.bytes.map(|_| start));
        match array.bytes {
            Some(bytes) => {
                self.arrays.push((start, bytes));
                self.end = start + bytes + GAP;
            }
            // All names of what the launch adds mean the same place, behind all others.
            None => self.dynamic = Some(self.dynamic.unwrap_or(0).max(array.align)),
        }
    }

    /// Where what the launch adds begins.
    pub fn dynamic_start(&self) -> usize {
        self.end.next_multiple_of(self.dynamic.unwrap_or(16).max(16))
    }

    pub fn address(&self, name: &str) -> Option<usize> {
        let &start = self.names.get(name)?;
        Some(start.unwrap_or_else(|| self.dynamic_start()))
    }

    /// Bytes that a card sets aside for the static arrays.
    pub fn static_bytes(&self) -> usize {
        self.arrays.iter().map(|(_, bytes)| bytes.next_multiple_of(16)).sum()
    }
}

/// The address of a parameter in its space.
pub(crate) fn param_address(params: &[Param], name: &str) -> Option<u64> {
    let index = params.iter().position(|param| param.name == name)?;
    Some((index as u64 + 1) << PARAM_SHIFT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_say_parameters_and_threads() {
        let head = Head::parse(
            ".visible .entry k(\n .param .u64 a,\n .param .align 8 .b8 b[24]\n) .maxntid 256, 1, 1",
        )
        .unwrap();
        assert_eq!(head.name, "k");
        let param = |name: &str, bytes| Param { name: name.into(), bytes };
        assert_eq!(head.params, [param("a", 8), param("b", 24)]);
        assert_eq!(head.max_threads, Some([256, 1, 1]));
        assert!(Head::parse(".entry k() .cluster 2").is_err());
    }

    #[test]
    fn what_the_launch_adds_lies_behind_all_arrays() {
        let mut layout = SharedLayout::default();
        for text in [
            ".shared .align 4 .b8 a[20]",
            ".extern .shared .align 128 .b8 more[]",
            ".shared .f32 b",
        ] {
            layout.add(&Array::parse(text).unwrap());
        }
        assert_eq!(layout.arrays, [(0, 20), (288, 4)]);
        assert_eq!(layout.address("b"), Some(288));
        assert_eq!(layout.address("more"), Some(640));
        assert_eq!(layout.address("c"), None);
        assert_eq!(layout.static_bytes(), 48);
    }
}
