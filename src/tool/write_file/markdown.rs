//! PDF from Markdown: what a text says, walked from front to back without recursion, and set on paper.
//!
//! Images are their descriptions and HTML is left out, so that there is nothing to fetch. Depth costs nothing but its
//! indent, which ends at [`DEEPEST`].

use pulldown_cmark::{Alignment, CodeBlockKind, Event, HeadingLevel, Options, Parser, Tag, TagEnd};

use super::{
    font::{Fonts, Style},
    page::{Frame, Paper, ROOM, Sign, lines},
};

/// The size of a text, in points.
const SIZE: f32 = 10.5;
/// The size of code and of tables.
const SMALL: f32 = 9.2;
/// How far a list or a quotation is indented.
const STEP: f32 = 22.0;
/// How many indents there are; what is deeper stands there too.
const DEEPEST: usize = 8;
/// The distance between paragraphs.
const GAP: f32 = 7.0;
/// How many columns a table can have side by side; one with more is set as text.
const MAX_COLUMNS: usize = 12;
/// How many lines a head can have that is repeated on every page.
const MAX_HEAD: usize = 3;
/// The distance between two columns.
const GUTTER: f32 = 10.0;

/// The PDF of a Markdown text, and what there is to say of it.
pub(super) fn pdf(content: &str) -> Result<(Vec<u8>, String), String> {
    let mut writer = Writer::new()?;
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_TASKLISTS;
    for event in Parser::new_ext(content, options) {
        writer.event(event)?;
    }
    writer.flush(SIZE, 0.0)?;
    let missing = writer.fonts.missing;
    let (bytes, pages) = writer.paper.finish(&mut writer.fonts, writer.title.trim())?;
    let pages = if pages == 1 {
        "1 page".to_owned()
    } else {
        format!("{pages} pages")
    };
    let note = match missing {
        0 => String::new(),
        1 => "; 1 character could not be shown".to_owned(),
        many => format!("; {many} characters could not be shown"),
    };
    Ok((bytes, format!(", {pages}{note}")))
}

/// A table as it is read: rows of cells.
type Rows = Vec<Vec<Vec<Sign>>>;

struct Writer {
    fonts: Fonts,
    paper: Paper,
    /// What of the present paragraph, heading or cell is read.
    signs: Vec<Sign>,
    bold: usize,
    italic: usize,
    struck: usize,
    link: u32,
    quotes: usize,
    /// The open lists: the next number, where they have some.
    lists: Vec<Option<u64>>,
    /// What stands before the next line.
    mark: Option<String>,
    code: bool,
    table: Option<Rows>,
    /// Where the columns of the table are aligned.
    aligned: Vec<Alignment>,
    title: String,
    titled: Titled,
}

/// Whether the title, which is the first heading, was read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Titled {
    No,
    Now,
    Yes,
}

impl Writer {
    fn new() -> Result<Self, String> {
        Ok(Self {
            fonts: Fonts::new()?,
            paper: Paper::new(),
            signs: Vec::new(),
            bold: 0,
            italic: 0,
            struck: 0,
            link: 0,
            quotes: 0,
            lists: Vec::new(),
            mark: None,
            code: false,
            table: None,
            aligned: Vec::new(),
            title: String::new(),
            titled: Titled::No,
        })
    }

    fn event(&mut self, event: Event<'_>) -> Result<(), String> {
        match event {
            Event::Start(tag) => self.start(tag)?,
            Event::End(tag) => self.end(tag)?,
            Event::Text(text) if self.code => self.code(&text),
            Event::Text(text) => self.say(&text, self.style()),
            Event::Code(text) => self.say(&text, Style::Mono),
            Event::SoftBreak => self.say(" ", self.style()),
            Event::HardBreak => self.turn(),
            Event::InlineHtml(tag) if tag.to_ascii_lowercase().starts_with("<br") => self.turn(),
            Event::Rule => {
                self.flush(SIZE, 0.0)?;
                self.paper.space(GAP);
                self.paper.take(4.0, 0.0)?;
                let indent = self.frame().indent;
                self.paper.rule(indent, ROOM - indent);
                self.paper.space(GAP);
            }
            Event::TaskListMarker(done) => self.mark = Some(if done { "☑" } else { "☐" }.to_owned()),
            _ => {}
        }
        Ok(())
    }

    fn start(&mut self, tag: Tag<'_>) -> Result<(), String> {
        match tag {
            Tag::Paragraph | Tag::HtmlBlock => self.flush(SIZE, 2.0)?,
            Tag::Heading { level, .. } => {
                self.flush(SIZE, GAP)?;
                self.paper.space(size_of(level) * 0.9);
                self.bold += 1;
                if self.titled == Titled::No {
                    self.titled = Titled::Now;
                }
            }
            Tag::BlockQuote(_) => {
                self.flush(SIZE, GAP)?;
                self.quotes += 1;
            }
            Tag::CodeBlock(kind) => {
                self.flush(SIZE, GAP)?;
                self.code = true;
                if let (CodeBlockKind::Fenced(_), Some(_)) = (kind, &self.mark) {
                    self.turn(); // the mark of a list stands before a line of its own
                    self.flush(SIZE, 0.0)?;
                }
            }
            Tag::List(first) => {
                self.flush(SIZE, 2.0)?;
                self.lists.push(first);
            }
            Tag::Item => {
                self.flush(SIZE, 2.0)?;
                let depth = self.lists.len();
                self.mark = Some(match self.lists.last_mut() {
                    Some(Some(number)) => {
                        let mark = format!("{number}.");
                        *number = number.saturating_add(1);
                        mark
                    }
                    _ if depth % 2 == 1 => "•".to_owned(),
                    _ => "–".to_owned(),
                });
            }
            Tag::Table(aligned) => {
                self.flush(SIZE, GAP)?;
                self.aligned = aligned;
                self.table = Some(Vec::new());
            }
            Tag::TableHead => {
                self.bold += 1;
                self.row();
            }
            Tag::TableRow => self.row(),
            Tag::Emphasis => self.italic += 1,
            Tag::Strong => self.bold += 1,
            Tag::Strikethrough => self.struck += 1,
            Tag::Link { dest_url, .. } => self.link = self.paper.link(&dest_url),
            Tag::Image { .. } => {
                self.italic += 1;
                self.say("[image: ", self.style());
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, tag: TagEnd) -> Result<(), String> {
        match tag {
            TagEnd::Paragraph => {
                self.flush(SIZE, GAP)?;
            }
            TagEnd::Heading(level) => {
                self.bold = self.bold.saturating_sub(1);
                if self.titled == Titled::Now {
                    self.titled = Titled::Yes;
                }
                self.flush(size_of(level), size_of(level) * 0.35)?;
            }
            TagEnd::BlockQuote(_) => {
                self.flush(SIZE, GAP)?;
                self.quotes = self.quotes.saturating_sub(1);
            }
            TagEnd::CodeBlock => {
                self.code = false;
                let signs = std::mem::take(&mut self.signs);
                let frame = Frame {
                    shaded: true,
                    ..self.frame()
                };
                self.paper.text(&signs, SMALL, frame, 0.0)?;
                self.paper.space(GAP + 2.0);
            }
            TagEnd::List(_) => {
                self.flush(SIZE, 2.0)?;
                self.lists.pop();
                if self.lists.is_empty() {
                    self.paper.space(GAP);
                }
            }
            TagEnd::Item => {
                if self.mark.is_some() {
                    self.turn(); // an empty item has its mark nevertheless
                }
                self.flush(SIZE, 2.0)?;
            }
            TagEnd::TableHead => self.bold = self.bold.saturating_sub(1),
            TagEnd::TableCell => {
                let cell = std::mem::take(&mut self.signs);
                if let Some(row) = self.table.as_mut().and_then(|rows| rows.last_mut()) {
                    row.push(cell);
                }
            }
            TagEnd::Table => {
                if let Some(rows) = self.table.take() {
                    self.set(&rows)?;
                    self.paper.space(GAP + 2.0);
                }
            }
            TagEnd::Emphasis => self.italic = self.italic.saturating_sub(1),
            TagEnd::Strong => self.bold = self.bold.saturating_sub(1),
            TagEnd::Strikethrough => self.struck = self.struck.saturating_sub(1),
            TagEnd::Link => self.link = 0,
            TagEnd::Image => {
                self.say("]", self.style());
                self.italic = self.italic.saturating_sub(1);
            }
            _ => {}
        }
        Ok(())
    }

    fn style(&self) -> Style {
        match (self.bold > 0, self.italic > 0) {
            (false, false) => Style::Regular,
            (true, false) => Style::Bold,
            (false, true) => Style::Oblique,
            (true, true) => Style::BoldOblique,
        }
    }

    fn frame(&self) -> Frame {
        let depth = u8::try_from(self.lists.len().min(DEEPEST)).unwrap_or(0);
        let quotes = u8::try_from(self.quotes.min(6)).unwrap_or(0);
        Frame {
            indent: f32::from(depth) * STEP + f32::from(quotes) * 12.0,
            quotes: self.quotes,
            shaded: false,
        }
    }

    /// Adds words.
    fn say(&mut self, text: &str, style: Style) {
        if self.titled == Titled::Now && self.title.len() < 200 {
            self.title.push_str(text);
        }
        for c in text.chars() {
            let c = if c == '\t' || c == '\n' { ' ' } else { c };
            if let Some(letter) = self.fonts.letter(style, c) {
                self.signs.push(Sign {
                    letter: Some(letter),
                    space: c == ' ',
                    struck: self.struck > 0,
                    link: self.link,
                });
            }
        }
    }

    /// Adds lines of code, whose spaces and ends of lines are meant.
    fn code(&mut self, text: &str) {
        for c in text.chars() {
            match c {
                '\n' => self.turn(),
                '\t' => self.say("    ", Style::Mono),
                c => self.say(c.encode_utf8(&mut [0; 4]), Style::Mono),
            }
        }
    }

    /// Ends the line.
    fn turn(&mut self) {
        self.signs.push(Sign {
            letter: None,
            space: true,
            struck: false,
            link: 0,
        });
    }

    /// Sets what was read as a paragraph, and leaves that much after it.
    fn flush(&mut self, size: f32, gap: f32) -> Result<(), String> {
        if self.signs.is_empty() || self.table.is_some() {
            return Ok(());
        }
        let signs = std::mem::take(&mut self.signs);
        let frame = self.frame();
        let together = if size > SIZE { Paper::height(SIZE) * 2.0 } else { 0.0 };
        if let Some(mark) = self.mark.take() {
            let first = lines(&signs, size, ROOM - frame.indent)
                .first()
                .map_or(0, |line| line.len());
            // The first line by itself, so that the mark stands beside it and not beside the last.
            let cut = signs[first..].iter().take_while(|sign| sign.space).count().min(1);
            let head = if first == 0 {
                &signs[..1.min(signs.len())]
            } else {
                &signs[..first]
            };
            self.paper.text(head, size, frame, together)?;
            let marks: Vec<Sign> = mark
                .chars()
                .filter_map(|c| self.fonts.letter(Style::Regular, c))
                .map(|letter| Sign {
                    letter: Some(letter),
                    space: false,
                    struck: false,
                    link: 0,
                })
                .collect();
            self.paper.mark(&marks, size, frame.indent);
            let rest = (first + cut).max(head.len()).min(signs.len());
            self.paper.text(&signs[rest..], size, frame, together)?;
        } else {
            self.paper.text(&signs, size, frame, together)?;
        }
        self.paper.space(gap);
        Ok(())
    }

    fn row(&mut self) {
        self.signs.clear();
        if let Some(rows) = &mut self.table {
            rows.push(Vec::new());
        }
    }

    /// Sets a table, its head on every page anew.
    fn set(&mut self, rows: &Rows) -> Result<(), String> {
        let frame = self.frame();
        let count = rows.iter().map(Vec::len).max().unwrap_or(0);
        if count > MAX_COLUMNS {
            for row in rows {
                for (at, cell) in row.iter().enumerate() {
                    if at > 0 {
                        self.say(" | ", Style::Regular);
                    }
                    self.signs.extend_from_slice(cell);
                }
                self.flush(SIZE, 2.0)?;
            }
            return Ok(());
        }
        let widths = widths(rows, count, ROOM - frame.indent);
        let mut head = Vec::new();
        for (at, row) in rows.iter().enumerate() {
            let cells: Vec<Vec<&[Sign]>> = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| lines(cell, SMALL, *width))
                .collect();
            if at > 0 && self.paper.is_full(Paper::height(SMALL) + 8.0) {
                self.paper.turn()?;
                self.set_row(&head, &widths, frame)?;
            }
            self.set_row(&cells, &widths, frame)?;
            if at == 0 && cells.iter().all(|cell| cell.len() <= MAX_HEAD) {
                head = cells;
            }
        }
        Ok(())
    }

    /// Sets a row, line by line, so that one that is higher than a page continues on the next.
    fn set_row(&mut self, cells: &[Vec<&[Sign]>], widths: &[f32], frame: Frame) -> Result<(), String> {
        if cells.is_empty() {
            return Ok(());
        }
        let height = Paper::height(SMALL);
        self.paper.space(2.5);
        for at in 0..cells.iter().map(Vec::len).max().unwrap_or(0).max(1) {
            let bottom = self.paper.take(height, 3.0)?;
            let mut x = frame.indent;
            let mut line = Vec::with_capacity(cells.len());
            for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
                if let Some(signs) = cell.get(at) {
                    let free = width - signs.iter().map(|sign| sign.width(SMALL)).sum::<f32>();
                    let shift = match self.aligned.get(column) {
                        Some(Alignment::Right) => free,
                        Some(Alignment::Center) => free / 2.0,
                        _ => 0.0,
                    };
                    line.push((x + shift.max(0.0), *signs));
                }
                x += width + GUTTER;
            }
            self.paper.cells(&line, SMALL, bottom);
        }
        self.paper.take(2.5, 0.0)?;
        self.paper.rule(frame.indent, total(widths));
        Ok(())
    }
}

/// The width of a table with its gutters.
fn total(widths: &[f32]) -> f32 {
    widths.iter().map(|width| width + GUTTER).sum::<f32>() - GUTTER
}

/// How wide a table's columns are: as they would like to be, or, where there is no room for that, no narrower than their
/// equal share unless they need less.
fn widths(rows: &Rows, count: usize, room: f32) -> Vec<f32> {
    let mut wanted = vec![12.0_f32; count];
    for row in rows {
        for (cell, wanted) in row.iter().zip(&mut wanted) {
            let width: f32 = cell
                .iter()
                .filter_map(|sign| sign.letter)
                .map(|letter| letter.width * SMALL)
                .sum();
            *wanted = wanted.max(width + 0.5);
        }
    }
    let columns = f32::from(u8::try_from(count.max(1)).unwrap_or(u8::MAX));
    let room = room - GUTTER * (columns - 1.0);
    let all: f32 = wanted.iter().sum();
    if all <= room {
        return wanted;
    }
    let share = room / columns;
    let narrow: f32 = wanted.iter().filter(|width| **width <= share).sum();
    let wide: f32 = wanted
        .iter()
        .filter(|width| **width > share)
        .map(|width| width.sqrt())
        .sum();
    let scale = |width: f32| {
        if width <= share {
            width
        } else {
            (room - narrow) * width.sqrt() / wide
        }
    };
    wanted.into_iter().map(scale).collect()
}

fn size_of(level: HeadingLevel) -> f32 {
    match level {
        HeadingLevel::H1 => 20.0,
        HeadingLevel::H2 => 16.0,
        HeadingLevel::H3 => 13.5,
        HeadingLevel::H4 => 12.0,
        HeadingLevel::H5 | HeadingLevel::H6 => 11.0,
    }
}
