//! PDF from Markdown: what a text says, walked from front to back without recursion, and set on paper.
//!
//! Images are their descriptions and HTML is left out, so that there is nothing to fetch. Depth costs nothing but its
//! indent, which ends at [`DEEPEST`].

use pulldown_cmark::{Alignment, CodeBlockKind, Event, HeadingLevel, Options, Parser, Tag, TagEnd};

use super::{
    font::{Fonts, Style},
    page::{Frame, Paper, ROOM, Sign, lines},
    table::Rows,
};

/// The size of a text, in points.
pub(super) const SIZE: f32 = 10.5;
/// The size of code and of tables.
pub(super) const SMALL: f32 = 9.2;
/// How far a list or a quotation is indented.
const STEP: f32 = 22.0;
/// How many indents there are; what is deeper stands there too.
const DEEPEST: usize = 8;
/// The distance between paragraphs.
const GAP: f32 = 7.0;

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

pub(super) struct Writer {
    pub(super) fonts: Fonts,
    pub(super) paper: Paper,
    /// What of the present paragraph, heading or cell is read.
    pub(super) signs: Vec<Sign>,
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
    pub(super) aligned: Vec<Alignment>,
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

    pub(super) fn frame(&self) -> Frame {
        let depth = u8::try_from(self.lists.len().min(DEEPEST)).unwrap_or(0);
        let quotes = u8::try_from(self.quotes.min(6)).unwrap_or(0);
        Frame {
            indent: f32::from(depth) * STEP + f32::from(quotes) * 12.0,
            quotes: self.quotes,
            shaded: false,
        }
    }

    /// Adds words.
    pub(super) fn say(&mut self, text: &str, style: Style) {
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
    pub(super) fn flush(&mut self, size: f32, gap: f32) -> Result<(), String> {
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
