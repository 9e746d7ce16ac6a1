//! Names of layers in checkpoints' lists: exact, as regular expressions, and with shell wildcards.
//!
//! Only what such lists use of regular expressions: literals, `.`, classes, groups with alternatives, repetition,
//! anchors and lookahead. Matching keeps the set of places where a part can end, so it takes polynomial time whatever
//! the pattern.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

/// Groups within groups at most.
const DEPTH: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Char(char),
    Any,
    Class { ranges: Vec<(char, char)>, negated: bool },
    Start,
    End,
    Group(Vec<Vec<Node>>),
    Look { alternatives: Vec<Vec<Node>>, negated: bool },
    Repeat { node: Box<Node>, least: usize, most: usize },
}

/// A pattern that names layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    alternatives: Vec<Vec<Node>>,
    whole: bool,
}

struct Reader<'a> {
    rest: core::iter::Peekable<core::str::Chars<'a>>,
    depth: usize,
}

impl Reader<'_> {
    fn alternatives(&mut self) -> Result<Vec<Vec<Node>>, String> {
        let mut all = vec![Vec::new()];
        while let Some(&next) = self.rest.peek() {
            match next {
                ')' if self.depth > 0 => break,
                '|' => {
                    self.rest.next();
                    all.push(Vec::new());
                }
                _ => {
                    let node = self.node()?;
                    let node = self.repeated(node)?;
                    if let Some(last) = all.last_mut() {
                        last.push(node);
                    }
                }
            }
        }
        Ok(all)
    }

    fn node(&mut self) -> Result<Node, String> {
        Ok(match self.rest.next() {
            Some('.') => Node::Any,
            Some('^') => Node::Start,
            Some('$') => Node::End,
            Some('\\') => self.escape()?,
            Some('[') => self.class()?,
            Some('(') => self.group()?,
            Some(other @ ('*' | '+' | '?' | '{' | ')')) => return Err(other.to_string()),
            Some(other) => Node::Char(other),
            None => return Err("nothing".to_string()),
        })
    }

    fn group(&mut self) -> Result<Node, String> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err("groups within groups".to_string());
        }
        let mut look = None;
        if self.rest.peek() == Some(&'?') {
            self.rest.next();
            match self.rest.next() {
                Some(':') => {}
                Some('!') => look = Some(true),
                Some('=') => look = Some(false),
                _ => return Err("(?".to_string()),
            }
        }
        let alternatives = self.alternatives()?;
        if self.rest.next() != Some(')') {
            return Err("( without )".to_string());
        }
        self.depth -= 1;
        Ok(match look {
            Some(negated) => Node::Look { alternatives, negated },
            None => Node::Group(alternatives),
        })
    }

    fn escape(&mut self) -> Result<Node, String> {
        let class = |ranges: &[(char, char)], negated| Node::Class { ranges: ranges.to_vec(), negated };
        const WORD: [(char, char); 4] = [('a', 'z'), ('A', 'Z'), ('0', '9'), ('_', '_')];
        Ok(match self.rest.next() {
            Some(kind @ ('d' | 'D')) => class(&[('0', '9')], kind == 'D'),
            Some(kind @ ('w' | 'W')) => class(&WORD, kind == 'W'),
            Some(kind @ ('s' | 'S')) => class(&[(' ', ' '), ('\t', '\r')], kind == 'S'),
            Some(other) if other.is_ascii_alphanumeric() => return Err(alloc::format!("\\{other}")),
            Some(other) => Node::Char(other),
            None => return Err("\\".to_string()),
        })
    }

    fn class(&mut self) -> Result<Node, String> {
        let negated = matches!(self.rest.peek(), Some('^' | '!'));
        if negated {
            self.rest.next();
        }
        let mut ranges = Vec::new();
        loop {
            let from = match self.rest.next() {
                Some(']') if !ranges.is_empty() => break,
                Some('\\') => match self.escape()? {
                    Node::Class { ranges: more, negated: false } => {
                        ranges.extend(more);
                        continue;
                    }
                    Node::Char(char) => char,
                    _ => return Err("[".to_string()),
                },
                Some(char) => char,
                None => return Err("[ without ]".to_string()),
            };
            let mut ahead = self.rest.clone();
            let range = ahead.next() == Some('-') && ahead.peek().is_some_and(|char| *char != ']');
            if range {
                self.rest.next();
            }
            let to = if range { self.rest.next().unwrap_or(from) } else { from };
            ranges.push((from, to));
        }
        Ok(Node::Class { ranges, negated })
    }

    fn repeated(&mut self, node: Node) -> Result<Node, String> {
        let (least, most) = match self.rest.peek() {
            Some('*') => (0, usize::MAX),
            Some('+') => (1, usize::MAX),
            Some('?') => (0, 1),
            Some('{') => {
                self.rest.next();
                let mut text = String::new();
                while let Some(char) = self.rest.next_if(|char| *char != '}') {
                    text.push(char);
                }
                let (least, most) = text.split_once(',').unwrap_or((&text, &text));
                let number = |text: &str| text.parse::<usize>().map_err(|_| alloc::format!("{{{text}}}"));
                (number(least)?, if most.is_empty() { usize::MAX } else { number(most)? })
            }
            _ => return Ok(node),
        };
        self.rest.next();
        // How eagerly makes no difference to whether there is a match.
        if self.rest.peek() == Some(&'?') {
            self.rest.next();
        }
        Ok(Node::Repeat { node: Box::new(node), least, most })
    }
}

impl Pattern {
    /// A regular expression that has to match from the beginning (Python's `re.match`).
    ///
    /// # Errors
    /// The part that is not understood.
    pub(super) fn regex(text: &str) -> Result<Self, String> {
        let mut reader = Reader { rest: text.chars().peekable(), depth: 0 };
        let alternatives = reader.alternatives()?;
        match reader.rest.next() {
            None => Ok(Self { alternatives, whole: false }),
            Some(left) => Err(left.to_string()),
        }
    }

    /// Shell wildcards that have to match all of a name (Python's `fnmatch`).
    #[must_use]
    pub(super) fn wildcards(text: &str) -> Self {
        let mut reader = Reader { rest: text.chars().peekable(), depth: 0 };
        let mut nodes = Vec::new();
        while let Some(char) = reader.rest.next() {
            nodes.push(match char {
                '*' => Node::Repeat { node: Box::new(Node::Any), least: 0, most: usize::MAX },
                '?' => Node::Any,
                '[' => reader.class().unwrap_or(Node::Char('[')),
                other => Node::Char(other),
            });
        }
        Self { alternatives: vec![nodes], whole: true }
    }

    /// Whether it matches.
    #[must_use]
    pub(super) fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        any(&self.alternatives, &text, &[0]).iter().any(|end| !self.whole || *end == text.len())
    }
}

/// Where any of the sequences can end, from each of `starts`.
fn any(alternatives: &[Vec<Node>], text: &[char], starts: &[usize]) -> Vec<usize> {
    let mut ends = Vec::new();
    for sequence in alternatives {
        let mut at = starts.to_vec();
        for node in sequence {
            at = step(node, text, &at);
        }
        ends.extend(at);
    }
    distinct(ends)
}

fn distinct(mut places: Vec<usize>) -> Vec<usize> {
    places.sort_unstable();
    places.dedup();
    places
}

fn step(node: &Node, text: &[char], starts: &[usize]) -> Vec<usize> {
    let take = |accepts: &dyn Fn(char) -> bool| -> Vec<usize> {
        starts.iter().filter(|at| text.get(**at).is_some_and(|char| accepts(*char))).map(|at| at + 1).collect()
    };
    match node {
        Node::Char(wanted) => take(&|char| char == *wanted),
        Node::Any => take(&|_| true),
        Node::Class { ranges, negated } => {
            take(&|char| ranges.iter().any(|(from, to)| (*from..=*to).contains(&char)) != *negated)
        }
        Node::Start => starts.iter().copied().filter(|at| *at == 0).collect(),
        Node::End => starts.iter().copied().filter(|at| *at == text.len()).collect(),
        Node::Group(alternatives) => any(alternatives, text, starts),
        Node::Look { alternatives, negated } => {
            starts.iter().copied().filter(|at| any(alternatives, text, &[*at]).is_empty() == *negated).collect()
        }
        Node::Repeat { node, least, most } => {
            let mut at = starts.to_vec();
            let mut reached = if *least == 0 { at.clone() } else { Vec::new() };
            // After as many rounds as there are characters nothing new is reached.
            for round in 1..=(*most).min(text.len().saturating_add(*least).saturating_add(1)) {
                at = distinct(step(node, text, &at));
                if at.is_empty() {
                    break;
                }
                if round >= *least {
                    reached.extend(at.iter().copied());
                }
            }
            distinct(reached)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Pattern;

    #[test]
    fn patterns_of_published_checkpoints_match_what_they_name() {
        let cases = [
            ("lm_head", "lm_head", true),
            (".*lm_head", "language_model.lm_head", true),
            (".*mlp.gate$", "model.layers.3.mlp.gate", true),
            (".*mlp.gate$", "model.layers.3.mlp.gate_proj", false),
            ("vision_tower.*", "model.vision_tower.layers.0", false),
            (".*self_attn\\.(q|kv)_a_proj.*", "model.layers.0.self_attn.q_a_proj", true),
            ("model\\.layers\\.[0-2]\\..*", "model.layers.1.mlp", true),
            ("model\\.layers\\.[0-2]\\..*", "model.layers.11.mlp", false),
            ("^(?!.*experts).*$", "model.layers.1.mlp.experts.0.up_proj", false),
            ("^(?!.*experts).*$", "model.layers.1.self_attn.q_proj", true),
            ("model.layers.\\d+.mlp", "model.layers.61.mlp.up_proj", true),
            ("a{2,3}b", "aaab", true),
            ("a{2,3}b", "ab", false),
        ];
        for (pattern, text, matches) in cases {
            assert_eq!(Pattern::regex(pattern).unwrap().matches(text), matches, "{pattern} on {text}");
        }
    }

    #[test]
    fn wildcards_match_whole_names() {
        assert!(Pattern::wildcards("model.layers.0.*").matches("model.layers.0.mlp.up_proj"));
        assert!(!Pattern::wildcards("model.layers.0").matches("model.layers.0.mlp"));
        assert!(Pattern::wildcards("*self_attn*").matches("model.layers.0.self_attn.q_proj"));
    }

    #[test]
    fn nested_repetition_takes_no_exponential_time() {
        let text = "a".repeat(200);
        assert!(!Pattern::regex("(a*)*b").unwrap().matches(&text));
        assert!(Pattern::regex("(((").is_err());
    }
}
