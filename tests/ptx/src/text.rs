//! PTX cut into statements.

use crate::fault::ParseError;

/// A statement of a kernel's body.
#[derive(Debug, PartialEq, Eq)]
pub struct Statement<'a> {
    /// Without its semicolon.
    pub text: &'a str,
    /// It is a label, and the text its name.
    pub is_label: bool,
    pub line: usize,
    /// Number of the file and line, where `.loc` says them.
    pub source: Option<(u32, u32)>,
}

/// The text of an entry.
#[derive(Debug, Default)]
pub struct Entry<'a> {
    pub line: usize,
    /// From `.entry` to the brace.
    pub head: &'a str,
    pub body: Vec<Statement<'a>>,
}

#[derive(Debug, Default)]
pub struct Text<'a> {
    pub entries: Vec<Entry<'a>>,
    /// `.shared` arrays of the module.
    pub arrays: Vec<Statement<'a>>,
    /// `.file` numbers and names.
    pub files: Vec<(u32, String)>,
}

/// The text with its comments blanked, line for line.
pub fn without_comments(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("//").into_iter().chain(rest.find("/*")).min() {
        clean.push_str(&rest[..start]);
        let long = rest[start..].starts_with("/*");
        let end = if long { "*/" } else { "\n" };
        let length = rest[start..].find(end).map_or(rest.len() - start, |at| at + end.len());
        let comment = &rest[start..start + length];
        clean.extend(comment.chars().filter(|&c| c == '\n'));
        rest = &rest[start + length..];
    }
    clean.push_str(rest);
    clean
}

/// Walks over the text and counts lines.
struct Cursor<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Cursor<'a> {
    fn skip_space(&mut self) {
        let kept = self.rest.trim_start();
        self.advance(self.rest.len() - kept.len());
    }

    fn advance(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(bytes);
        self.line += taken.matches('\n').count();
        self.rest = rest;
        taken
    }

    /// All before the first of these characters.
    fn until(&mut self, ends: &[char]) -> Result<&'a str, ParseError> {
        let end = self.rest.find(ends).ok_or_else(|| self.error("the text ends here"))?;
        Ok(self.advance(end))
    }

    fn error(&self, detail: &str) -> ParseError {
        ParseError { line: self.line, detail: detail.into() }
    }
}

/// # Errors
/// What is not known between kernels, or does not end.
pub fn cut(text: &str) -> Result<Text<'_>, ParseError> {
    let mut cursor = Cursor { rest: text, line: 1 };
    let mut cut = Text::default();
    loop {
        cursor.skip_space();
        let line = cursor.line;
        let Some(word) = cursor.rest.split_whitespace().next() else { return Ok(cut) };
        match word {
            ".version" | ".target" | ".address_size" => {
                cursor.until(&['\n'])?;
            }
            ".file" => cut.files.extend(file(cursor.until(&['\n'])?)),
            ".section" => {
                cursor.until(&['}'])?;
                cursor.advance(1);
            }
            ".shared" | ".extern" => {
                let text = cursor.until(&[';'])?.trim();
                cursor.advance(1);
                cut.arrays.push(Statement { text, is_label: false, line, source: None });
            }
            ".visible" | ".entry" => {
                let head = cursor.until(&['{'])?.trim();
                let body = body(&mut cursor)?;
                cut.entries.push(Entry { line, head, body });
            }
            _ => return Err(cursor.error(&format!("unknown directive {word}"))),
        }
    }
}

/// `.file 1 "path"`
fn file(line: &str) -> Option<(u32, String)> {
    let mut words = line.split_whitespace().skip(1);
    let number = words.next()?.parse().ok()?;
    let path = words.next()?.trim_matches(['"', ',']);
    let name = path.rsplit('/').next().unwrap_or(path);
    Some((number, name.to_owned()))
}

/// The statements between the braces of an entry. Braces within only bound the names of registers.
fn body<'a>(cursor: &mut Cursor<'a>) -> Result<Vec<Statement<'a>>, ParseError> {
    let mut depth = 0;
    let mut source = None;
    let mut statements = vec![];
    loop {
        cursor.skip_space();
        let line = cursor.line;
        let Some(first) = cursor.rest.chars().next() else {
            return Err(cursor.error("a kernel without an end"));
        };
        if matches!(first, '{' | '}') {
            cursor.advance(1);
            depth += if first == '{' { 1 } else { -1 };
            if depth == 0 {
                return Ok(statements);
            }
            continue;
        }
        if cursor.rest.strip_prefix(".loc").is_some_and(|rest| rest.starts_with([' ', '\t'])) {
            let text = cursor.until(&['\n'])?;
            let mut numbers = text.split_whitespace().skip(1).map_while(|n| n.parse().ok());
            source = numbers.next().zip(numbers.next());
            continue;
        }
        let is_label = first == '$';
        let text = cursor.until(&[if is_label { ':' } else { ';' }])?.trim();
        cursor.advance(1);
        statements.push(Statement { text, is_label, line, source });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_keep_their_lines() {
        let text = without_comments(
            "// head ;\n.version 9.0\n.file 1 \"a/b.cu\"\n.visible .entry k()\n{\n.loc 1 7 3, x y\n\
             mov.u32 %r1, 0; /* two\nlines */ { ret;\n}\n$L:\n add.s32 %r1,\n %r1, 1;\n}\n",
        );
        let cut = cut(&text).unwrap();
        assert_eq!(cut.files, [(1, "b.cu".to_owned())]);
        let entry = &cut.entries[0];
        assert_eq!((entry.line, entry.head), (4, ".visible .entry k()"));
        let seen: Vec<_> = entry.body.iter().map(|s| (s.line, s.is_label, s.text)).collect();
        let expected = [
            (7, false, "mov.u32 %r1, 0"),
            (8, false, "ret"),
            (10, true, "$L"),
            (11, false, "add.s32 %r1,\n %r1, 1"),
        ];
        assert_eq!(seen, expected);
        assert_eq!(entry.body[0].source, Some((1, 7)));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for text in [".func f();", ".global .b8 x[4];", ".visible .entry k() { ret;"] {
            assert!(cut(text).is_err(), "{text}");
        }
    }
}
