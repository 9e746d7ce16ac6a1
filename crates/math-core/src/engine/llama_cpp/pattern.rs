//! Regular expressions as `--override-tensor` takes them: searched for in a tensor's name (`std::regex_search` of the
//! ECMAScript grammar, `llama-model-loader.cpp:create_tensor`).
//!
//! Literals, `.`, classes, escapes, groups, alternation, repetition and anchors are followed. Back references, look-around
//! and POSIX class names are errors, not guesses. All alternatives are walked at once, so that no pattern takes longer than
//! its own length for every byte of the name.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use crate::error::MathError;

/// Steps that a pattern may compile to: repetition counts multiply.
const MAX_STEPS: usize = 10_000;

/// Groups in groups.
const MAX_DEPTH: usize = 100;

/// A compiled pattern.
#[derive(Debug, Clone)]
pub struct Pattern {
    steps: Vec<Step>,
    /// Bytes that everything found begins with: looked for first, because most names do not hold them.
    prefix: Vec<u8>,
}

#[derive(Debug, Clone)]
enum Step {
    /// Takes one byte of a class.
    Take(Class),
    /// Goes on at either of two steps.
    Fork(usize, usize),
    /// Goes on elsewhere.
    Jump(usize),
    /// Passes at an edge of the name.
    Edge(Edge),
    /// Found.
    Found,
}

impl Step {
    /// The only byte that it takes.
    fn literal(&self) -> Option<u8> {
        match self {
            Self::Take(class) if !class.negated => match class.ranges.as_slice() {
                [(first, last)] if first == last => Some(*first),
                _ => None,
            },
            Self::Take(_) | Self::Fork(..) | Self::Jump(_) | Self::Edge(_) | Self::Found => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edge {
    Start,
    End,
    Word,
    NotWord,
}

/// A set of bytes.
#[derive(Debug, Clone)]
struct Class {
    ranges: Vec<(u8, u8)>,
    negated: bool,
}

impl Class {
    fn one(byte: u8) -> Self {
        Self { ranges: Vec::from([(byte, byte)]), negated: false }
    }

    fn contains(&self, byte: u8) -> bool {
        self.ranges.iter().any(|(first, last)| (*first..=*last).contains(&byte)) != self.negated
    }
}

/// A parsed pattern.
#[derive(Debug, Clone)]
enum Node {
    Take(Class),
    Edge(Edge),
    Sequence(Vec<Node>),
    Either(Vec<Node>),
    Repeat { node: Box<Node>, least: u32, most: Option<u32> },
}

impl Pattern {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// [`MathError::Invalid`] for what is no regular expression, or one with syntax that is not followed.
    ///
    /// ```
    /// use plimsoll_math::engine::llama_cpp::pattern::Pattern;
    /// let experts = Pattern::new(r"blk\.(1[0-9]|2\d)\.ffn_.*_exps").unwrap();
    /// assert!(experts.is_in("blk.17.ffn_up_exps.weight"));
    /// assert!(!experts.is_in("blk.7.ffn_up_exps.weight"));
    /// assert!(Pattern::new(r"(blk)\1").is_err());
    /// ```
    pub fn new(text: &str) -> Result<Self, MathError> {
        let mut parser = Parser { text, bytes: text.as_bytes(), at: 0 };
        let node = parser.either(0)?;
        if parser.at < parser.bytes.len() {
            return Err(parser.wrong("a closing parenthesis without an opening one"));
        }
        let mut steps = Vec::new();
        emit(&node, &mut steps).ok_or_else(|| parser.wrong("repetitions that multiply to too much"))?;
        steps.push(Step::Found);
        let prefix = steps.iter().map_while(Step::literal).collect();
        Ok(Self { steps, prefix })
    }

    /// Whether the pattern is found anywhere in `name`.
    #[must_use]
    pub fn is_in(&self, name: &str) -> bool {
        let bytes = name.as_bytes();
        let first = match self.prefix.split_first() {
            None => 0,
            Some((head, tail)) => {
                // Few bytes are the first of the prefix, and the others need not be compared.
                let begins = |(at, byte): &(usize, &u8)| {
                    *byte == head && bytes.get(at.saturating_add(1)..).is_some_and(|after| after.starts_with(tail))
                };
                match bytes.iter().enumerate().find(begins) {
                    Some((first, _)) => first,
                    None => return false,
                }
            }
        };
        let mut open: Vec<usize> = Vec::new();
        let mut reached: Vec<usize> = Vec::new();
        let mut seen = alloc::vec![usize::MAX; self.steps.len()];
        for at in first..=bytes.len() {
            let before = at.checked_sub(1).and_then(|previous| bytes.get(previous)).copied();
            let next = bytes.get(at).copied();
            // A search may begin at every byte.
            core::mem::swap(&mut open, &mut reached);
            open.push(0);
            while let Some(step) = open.pop() {
                let Some(mark) = seen.get_mut(step) else { continue };
                if *mark == at {
                    continue;
                }
                *mark = at;
                match self.steps.get(step) {
                    Some(Step::Found) => return true,
                    Some(Step::Fork(one, other)) => open.extend([*one, *other]),
                    Some(Step::Jump(target)) => open.push(*target),
                    Some(Step::Edge(edge)) if edge.is_between(before, next) => open.push(step.saturating_add(1)),
                    Some(Step::Take(class)) if next.is_some_and(|byte| class.contains(byte)) => {
                        reached.push(step.saturating_add(1));
                    }
                    Some(Step::Edge(_) | Step::Take(_)) | None => {}
                }
            }
        }
        false
    }
}

impl Edge {
    fn is_between(self, before: Option<u8>, next: Option<u8>) -> bool {
        let is_word = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        match self {
            Self::Start => before.is_none(),
            Self::End => next.is_none(),
            Self::Word => is_word(before) != is_word(next),
            Self::NotWord => is_word(before) == is_word(next),
        }
    }
}

/// Appends the steps of a node; `None` when there are too many.
fn emit(node: &Node, steps: &mut Vec<Step>) -> Option<()> {
    if steps.len() > MAX_STEPS {
        return None;
    }
    match node {
        Node::Take(class) => steps.push(Step::Take(class.clone())),
        Node::Edge(edge) => steps.push(Step::Edge(*edge)),
        Node::Sequence(nodes) => nodes.iter().try_for_each(|node| emit(node, steps))?,
        Node::Either(nodes) => {
            let (last, before) = nodes.split_last()?;
            let mut ends = Vec::new();
            for node in before {
                let fork = push_fork(steps);
                emit(node, steps)?;
                ends.push(steps.len());
                steps.push(Step::Jump(0));
                close(steps, fork);
            }
            emit(last, steps)?;
            let after = steps.len();
            for end in ends {
                set(steps, end, Step::Jump(after));
            }
        }
        Node::Repeat { node, least, most } => {
            for _ in 0..*least {
                emit(node, steps)?;
            }
            match most {
                None => {
                    let fork = push_fork(steps);
                    emit(node, steps)?;
                    steps.push(Step::Jump(fork));
                    close(steps, fork);
                }
                Some(most) => {
                    let mut forks = Vec::new();
                    for _ in *least..*most {
                        forks.push(push_fork(steps));
                        emit(node, steps)?;
                    }
                    for fork in forks {
                        close(steps, fork);
                    }
                }
            }
        }
    }
    Some(())
}

fn push_fork(steps: &mut Vec<Step>) -> usize {
    steps.push(Step::Fork(0, 0));
    steps.len().saturating_sub(1)
}

/// A fork between what follows it and what comes next.
fn close(steps: &mut [Step], fork: usize) {
    set(steps, fork, Step::Fork(fork.saturating_add(1), steps.len()));
}

fn set(steps: &mut [Step], at: usize, step: Step) {
    if let Some(slot) = steps.get_mut(at) {
        *slot = step;
    }
}

struct Parser<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn wrong(&self, found: &str) -> MathError {
        let shown: alloc::string::String = self.text.chars().take(80).collect();
        MathError::Invalid {
            field: "override tensor".to_string(),
            found: format!("{found} at byte {} of \"{shown}\"", self.at),
            expected: "a regular expression without back references, look-around and named classes".to_string(),
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at = self.at.saturating_add(1);
        Some(byte)
    }

    fn eat(&mut self, wanted: u8) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.at = self.at.saturating_add(1);
        }
        found
    }

    fn either(&mut self, depth: usize) -> Result<Node, MathError> {
        if depth > MAX_DEPTH {
            return Err(self.wrong("groups too deep in each other"));
        }
        let mut alternatives = Vec::from([self.sequence(depth)?]);
        while self.eat(b'|') {
            alternatives.push(self.sequence(depth)?);
        }
        Ok(Node::Either(alternatives))
    }

    fn sequence(&mut self, depth: usize) -> Result<Node, MathError> {
        let mut nodes = Vec::new();
        while let Some(byte) = self.peek().filter(|byte| !matches!(byte, b'|' | b')')) {
            self.at = self.at.saturating_add(1);
            let node = match byte {
                b'(' => {
                    if self.eat(b'?') && !self.eat(b':') {
                        return Err(self.wrong("look-around"));
                    }
                    let node = self.either(depth.saturating_add(1))?;
                    if !self.eat(b')') {
                        return Err(self.wrong("a group that is not closed"));
                    }
                    node
                }
                b'[' => Node::Take(self.class()?),
                b'.' => Node::Take(Class { ranges: Vec::from([(b'\n', b'\n'), (b'\r', b'\r')]), negated: true }),
                b'^' => Node::Edge(Edge::Start),
                b'$' => Node::Edge(Edge::End),
                b'\\' => self.escape()?,
                b'*' | b'+' | b'?' | b'{' => return Err(self.wrong("a repetition of nothing")),
                literal => Node::Take(Class::one(literal)),
            };
            nodes.push(self.repeated(node)?);
        }
        Ok(Node::Sequence(nodes))
    }

    fn repeated(&mut self, node: Node) -> Result<Node, MathError> {
        let (least, most) = match self.peek() {
            Some(b'*') => (0, None),
            Some(b'+') => (1, None),
            Some(b'?') => (0, Some(1)),
            Some(b'{') => {
                self.at = self.at.saturating_add(1);
                let least = self.number()?;
                let most = if self.eat(b',') {
                    if self.peek() == Some(b'}') { None } else { Some(self.number()?) }
                } else {
                    Some(least)
                };
                if self.peek() != Some(b'}') || most.is_some_and(|most| most < least) {
                    return Err(self.wrong("a repetition that cannot be"));
                }
                (least, most)
            }
            _ => return Ok(node),
        };
        self.at = self.at.saturating_add(1);
        // Whether as much or as little as possible is taken does not change whether anything is found.
        self.eat(b'?');
        if matches!(self.peek(), Some(b'*' | b'+' | b'?' | b'{')) {
            return Err(self.wrong("a repetition of a repetition"));
        }
        Ok(Node::Repeat { node: Box::new(node), least, most })
    }

    fn number(&mut self) -> Result<u32, MathError> {
        let from = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at = self.at.saturating_add(1);
        }
        let digits = self.text.get(from..self.at).unwrap_or_default();
        digits.parse().ok().filter(|count| *count <= 1000).ok_or_else(|| self.wrong("a count that is no number up to 1000"))
    }

    fn escape(&mut self) -> Result<Node, MathError> {
        match self.next() {
            Some(b'b') => Ok(Node::Edge(Edge::Word)),
            Some(b'B') => Ok(Node::Edge(Edge::NotWord)),
            Some(byte) => self.escaped(byte).map(Node::Take),
            None => Err(self.wrong("a backslash at the end")),
        }
    }

    /// What an escaped character stands for, in a class or outside.
    fn escaped(&self, byte: u8) -> Result<Class, MathError> {
        let class = |ranges: &[(u8, u8)], negated| Class { ranges: ranges.to_vec(), negated };
        let words: &[(u8, u8)] = &[(b'a', b'z'), (b'A', b'Z'), (b'0', b'9'), (b'_', b'_')];
        let spaces: &[(u8, u8)] = &[(b'\t', b'\r'), (b' ', b' ')];
        Ok(match byte {
            b'd' | b'D' => class(&[(b'0', b'9')], byte == b'D'),
            b'w' | b'W' => class(words, byte == b'W'),
            b's' | b'S' => class(spaces, byte == b'S'),
            b't' => Class::one(b'\t'),
            b'n' => Class::one(b'\n'),
            b'r' => Class::one(b'\r'),
            b'f' => Class::one(0x0c),
            b'v' => Class::one(0x0b),
            b'0'..=b'9' => return Err(self.wrong("a back reference")),
            byte if byte.is_ascii_alphanumeric() => return Err(self.wrong("an escape that is not followed")),
            punctuation => Class::one(punctuation),
        })
    }

    fn class(&mut self) -> Result<Class, MathError> {
        let negated = self.eat(b'^');
        let mut ranges: Vec<(u8, u8)> = Vec::new();
        loop {
            let first = match self.next() {
                None => return Err(self.wrong("a class that is not closed")),
                Some(b']') => break,
                Some(b'[') if matches!(self.peek(), Some(b':' | b'.' | b'=')) => return Err(self.wrong("a named class")),
                Some(b'\\') => match self.member()? {
                    Member::One(byte) => byte,
                    Member::Several(class) => {
                        ranges.extend(class);
                        continue;
                    }
                },
                Some(byte) => byte,
            };
            if self.peek() != Some(b'-') || self.bytes.get(self.at.saturating_add(1)) == Some(&b']') {
                ranges.push((first, first));
                continue;
            }
            self.at = self.at.saturating_add(1);
            let last = match self.next() {
                Some(b'\\') => match self.member()? {
                    Member::One(byte) => byte,
                    Member::Several(_) => return Err(self.wrong("a range to a class")),
                },
                Some(byte) => byte,
                None => return Err(self.wrong("a class that is not closed")),
            };
            if last < first {
                return Err(self.wrong("a range that runs backwards"));
            }
            ranges.push((first, last));
        }
        Ok(Class { ranges, negated })
    }

    /// An escaped member of a class.
    fn member(&mut self) -> Result<Member, MathError> {
        let Some(byte) = self.next() else { return Err(self.wrong("a class that is not closed")) };
        if byte == b'b' {
            return Ok(Member::One(0x08));
        }
        let class = self.escaped(byte)?;
        if class.negated {
            return Err(self.wrong("a negated class in a class"));
        }
        Ok(match class.ranges.as_slice() {
            [(first, last)] if first == last => Member::One(*first),
            _ => Member::Several(class.ranges),
        })
    }
}

enum Member {
    One(u8),
    Several(Vec<(u8, u8)>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, found: &[&str], not_found: &[&str]) {
        let compiled = Pattern::new(pattern).unwrap();
        for name in found {
            assert!(compiled.is_in(name), "{pattern} in {name}");
        }
        for name in not_found {
            assert!(!compiled.is_in(name), "{pattern} not in {name}");
        }
    }

    #[test]
    fn patterns_in_use_are_found() {
        check(
            r"\.ffn_(up|down|gate|gate_up)_(ch|)exps",
            &["blk.3.ffn_gate_up_exps.weight", "blk.0.ffn_up_chexps.weight"],
            &["blk.3.ffn_up_shexp.weight", "blk.3.ffn_up.weight"],
        );
        check("exps", &["blk.0.ffn_up_exps.weight"], &["blk.0.attn_q.weight"]);
        check(r"^blk\.([0-9]|1[0-9])\.", &["blk.7.attn_q.weight", "blk.19.x"], &["blk.20.x", "v.blk.7.x"]);
        check(r"ffn_.*_exps\.weight$", &["blk.0.ffn_up_exps.weight"], &["blk.0.ffn_up_exps.bias"]);
        check(r"blk\.\d{2,}\.attn_(q|k)", &["blk.10.attn_k.weight"], &["blk.9.attn_k.weight", "blk.10.attn_v.weight"]);
        check(r"blk\.(?:1|2)?[13579]\.", &["blk.1.x", "blk.23.x"], &["blk.22.x", "blk.31.x"]);
        check(r"[^a-z]up", &["ffn_up", ".up"], &["gup", "up"]);
        check(r"a{0}b", &["b"], &["a"]);
        check("", &["", "anything"], &[]);
        check("ab+a", &["aabba", "xaba"], &["ab", "aab"]);
        check(r"a+?b*?c??$", &["xaab", "ac"], &["b"]);
        check(r"[\w.-]+\s", &["a-b.c "], &["abc"]);
        check(r"\bup\b", &["ffn.up.weight"], &["ffn_up"]);
    }

    #[test]
    fn what_is_not_followed_is_an_error() {
        for pattern in ["(", ")", "a**", "*", "[a", r"\1", "(?=a)", "[[:alpha:]]", r"\", "a{2,1}", r"\x41", "(((a{900}){900}))"] {
            assert!(Pattern::new(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn nested_repetitions_take_no_longer() {
        let pattern = Pattern::new("(a*)*(a*)*b").unwrap();
        assert!(!pattern.is_in(&"a".repeat(5000)));
    }
}
