//! Which event of a log is where: a few bytes for each, for an answer is many small tokens.

use std::ops::Range;

/// The entries of a log, in order. Those of words only say where their words end: they begin where those of the same kind
/// before them end.
#[derive(Debug)]
pub(super) struct Entries<T> {
    marks: Vec<Mark>,
    others: Vec<T>,
}

/// An entry: its kind, and where its words end, or which of the others it is. Four bytes that need no alignment.
#[derive(Clone, Copy, Debug)]
struct Mark {
    kind: Kind,
    at: [u8; 4],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Reasoning,
    Other,
}

/// What an entry is of.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place<'a, T> {
    /// These bytes of the text.
    Text(Range<usize>),
    /// These bytes of the thoughts.
    Reasoning(Range<usize>),
    /// Something else.
    Other(&'a T),
}

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Self {
            marks: Vec::new(),
            others: Vec::new(),
        }
    }
}

impl<T> Entries<T> {
    /// What an entry of words holds, in bytes.
    pub(super) const WORDS: usize = size_of::<Mark>();
    /// What any other one does, beside what it points to.
    pub(super) const OTHER: usize = size_of::<Mark>() + size_of::<T>();

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.marks.len()
    }

    /// More of the text, which ends there now. What is bounded by `runs.max_output` is far below 4 GiB.
    pub(super) fn text(&mut self, end: usize) {
        self.mark(Kind::Text, end);
    }

    /// More of the thoughts, which end there now.
    pub(super) fn reasoning(&mut self, end: usize) {
        self.mark(Kind::Reasoning, end);
    }

    /// Something else.
    pub(super) fn other(&mut self, other: T) {
        self.mark(Kind::Other, self.others.len());
        self.others.push(other);
    }

    fn mark(&mut self, kind: Kind, at: usize) {
        let at = (at as u32).to_ne_bytes();
        self.marks.push(Mark { kind, at });
    }

    /// The entry with this index. Whoever reads on finds the one before it at once.
    pub(super) fn get(&self, index: usize) -> Place<'_, T> {
        let mark = self.marks[index];
        let words = || {
            let before = self.marks[..index].iter().rev().find(|before| before.kind == mark.kind);
            before.map_or(0, |before| before.at())..mark.at()
        };
        match mark.kind {
            Kind::Text => Place::Text(words()),
            Kind::Reasoning => Place::Reasoning(words()),
            Kind::Other => Place::Other(&self.others[mark.at()]),
        }
    }

    /// The first entry, unless it is of words.
    pub(super) fn first(&self) -> Option<&T> {
        self.marks.first().and_then(|mark| self.other_at(*mark))
    }

    /// The last entry, unless it is of words.
    pub(super) fn last(&self) -> Option<&T> {
        self.marks.last().and_then(|mark| self.other_at(*mark))
    }

    fn other_at(&self, mark: Mark) -> Option<&T> {
        (mark.kind == Kind::Other).then(|| &self.others[mark.at()])
    }

    /// The same in as little room as it needs. Copied rather than shrunk: what is cut off behind a piece that stays is a
    /// hole in which nothing fits.
    pub(super) fn settle(&mut self) {
        self.marks = self.marks.as_slice().to_vec();
        let grown = std::mem::take(&mut self.others);
        self.others = Vec::with_capacity(grown.len());
        self.others.extend(grown);
    }
}

impl Mark {
    fn at(self) -> usize {
        u32::from_ne_bytes(self.at) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_begin_where_those_of_their_kind_end() {
        let mut entries = Entries::default();
        entries.other("started");
        entries.reasoning(3);
        entries.text(2);
        entries.reasoning(4);
        entries.text(2);
        entries.other("tool");
        entries.text(70_000);
        entries.other("done");
        for _ in 0..2 {
            let all: Vec<_> = (0..entries.len()).map(|index| entries.get(index)).collect();
            let expected = [
                Place::Other(&"started"),
                Place::Reasoning(0..3),
                Place::Text(0..2),
                Place::Reasoning(3..4),
                Place::Text(2..2),
                Place::Other(&"tool"),
                Place::Text(2..70_000),
                Place::Other(&"done"),
            ];
            assert_eq!(all, expected);
            assert_eq!((entries.first(), entries.last()), (Some(&"started"), Some(&"done")));
            entries.settle();
        }
        assert_eq!(Entries::<&str>::WORDS, 5);
    }

    #[test]
    fn only_what_is_not_words_is_named() {
        let mut entries = Entries::<()>::default();
        assert_eq!((entries.first(), entries.last()), (None, None));
        entries.text(1);
        assert_eq!((entries.first(), entries.last()), (None, None));
    }
}
