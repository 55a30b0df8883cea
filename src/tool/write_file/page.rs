//! The paper: lines of letters set below each other, page after page, and the PDF that they become.

use pdf_writer::{
    Content, Filter, Finish, Name, Pdf, Rect, Ref, Str, TextStr,
    types::{ActionType, AnnotationType},
};

use super::font::{Fonts, Letter, NAMES, Style};

/// A4, in points.
const WIDTH: f32 = 595.0;
const HEIGHT: f32 = 842.0;
const MARGIN: f32 = 62.0;
/// How many pages a document may have.
const MAX_PAGES: usize = 1_000;
/// How many bytes of addresses links may have together; the rest only look like links.
const MAX_ADDRESSES: usize = 1 << 20;
/// The height of a line as a share of its size.
const LEADING: f32 = 1.42;
const INK: [f32; 3] = [0.11, 0.11, 0.13];
const LINK: [f32; 3] = [0.05, 0.33, 0.68];
const FAINT: [f32; 3] = [0.45, 0.45, 0.48];
const RULE: [f32; 3] = [0.78, 0.78, 0.8];
const SHADE: [f32; 3] = [0.955, 0.955, 0.96];

/// A letter in its text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sign {
    /// How it is drawn; a forced end of the line has nothing to draw.
    pub(super) letter: Option<Letter>,
    /// Whether a line may end here.
    pub(super) space: bool,
    /// Whether it is struck through.
    pub(super) struck: bool,
    /// Which link it belongs to, from 1; 0 for none.
    pub(super) link: u32,
}

impl Sign {
    pub(super) fn width(&self, size: f32) -> f32 {
        self.letter.map_or(0.0, |letter| letter.width * size)
    }
}

/// What stands around a line.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Frame {
    /// How far from the margin it begins.
    pub(super) indent: f32,
    /// How many quotations it stands in.
    pub(super) quotes: usize,
    /// Whether it has a shade behind it.
    pub(super) shaded: bool,
}

/// The pages so far.
pub(super) struct Paper {
    pages: Vec<(Content, Vec<(Rect, u32)>)>,
    /// Where the next line begins, from below.
    y: f32,
    /// The least distance to the next line.
    gap: f32,
    /// The addresses of the links.
    pub(super) addresses: Vec<String>,
    addressed: usize,
}

/// The room between the margins.
pub(super) const ROOM: f32 = WIDTH - 2.0 * MARGIN;

impl Paper {
    pub(super) fn new() -> Self {
        Self {
            pages: vec![(Content::new(), Vec::new())],
            y: HEIGHT - MARGIN,
            gap: 0.0,
            addresses: Vec::new(),
            addressed: 0,
        }
    }

    /// The number of a link to that address; 0 where a reader should not be led: to files, or by scripts.
    pub(super) fn link(&mut self, address: &str) -> u32 {
        let lower = address.get(..8).unwrap_or(address).to_ascii_lowercase();
        let fits = ["http://", "https://", "mailto:"]
            .iter()
            .any(|scheme| lower.starts_with(scheme));
        if !fits || !address.bytes().all(|byte| byte.is_ascii_graphic()) {
            return 0;
        }
        self.addresses.push(address.to_owned());
        u32::try_from(self.addresses.len()).unwrap_or(0)
    }

    /// Leaves at least that much before the next line.
    pub(super) fn space(&mut self, gap: f32) {
        self.gap = self.gap.max(gap);
    }

    /// Takes the room for a line of that height, and says where its lower edge is. `together` is how much more must fit
    /// on the same page.
    pub(super) fn take(&mut self, height: f32, together: f32) -> Result<f32, String> {
        let fresh = self.y > HEIGHT - MARGIN - 0.1;
        let gap = if fresh { 0.0 } else { self.gap };
        self.gap = 0.0;
        if !fresh && self.y - gap - height - together < MARGIN {
            self.turn()?;
            self.y -= height;
        } else {
            self.y -= gap + height;
        }
        Ok(self.y)
    }

    /// Begins a page.
    pub(super) fn turn(&mut self) -> Result<(), String> {
        if self.pages.len() == MAX_PAGES {
            return Err(format!("It has more than {MAX_PAGES} pages."));
        }
        self.pages.push((Content::new(), Vec::new()));
        (self.y, self.gap) = (HEIGHT - MARGIN, 0.0);
        Ok(())
    }

    /// Whether that much more is more than the page has room for.
    pub(super) fn is_full(&self, height: f32) -> bool {
        self.y - self.gap - height < MARGIN
    }

    /// Sets a text in lines.
    pub(super) fn text(&mut self, signs: &[Sign], size: f32, frame: Frame, together: f32) -> Result<(), String> {
        let height = size * LEADING;
        for line in lines(signs, size, ROOM - frame.indent - if frame.shaded { 12.0 } else { 0.0 }) {
            let bottom = self.take(height, together)?;
            let inset = if frame.shaded { 6.0 } else { 0.0 };
            self.around(frame, bottom, height);
            self.line(line, size, MARGIN + frame.indent + inset, bottom + height * 0.28);
        }
        Ok(())
    }

    /// Draws what stands around a line.
    fn around(&mut self, frame: Frame, bottom: f32, height: f32) {
        if frame.shaded {
            self.fill(SHADE, frame.indent, bottom, ROOM - frame.indent, height + 0.3);
        }
        for quote in 0..frame.quotes.min(6) {
            #[expect(clippy::cast_precision_loss, reason = "at most six")]
            let x = quote as f32 * 12.0 + 2.0;
            self.fill(RULE, x, bottom, 2.0, height + 0.3);
        }
    }

    /// Sets one line; `x` and `y` are on the page.
    pub(super) fn line(&mut self, signs: &[Sign], size: f32, x: f32, y: f32) {
        let Some((page, links)) = self.pages.last_mut() else {
            return;
        };
        let mut place = x;
        for run in signs.chunk_by(|a, b| {
            a.letter.map(|l| l.font) == b.letter.map(|l| l.font) && a.link == b.link && a.struck == b.struck
        }) {
            let Some(first) = run.first() else { continue };
            let width: f32 = run.iter().map(|sign| sign.width(size)).sum();
            let glyphs: Vec<u8> = run
                .iter()
                .filter_map(|sign| sign.letter)
                .flat_map(|letter| letter.glyph.to_be_bytes())
                .collect();
            let name = first.letter.and_then(|letter| NAMES.get(usize::from(letter.font)));
            if let (Some(name), false) = (name, glyphs.is_empty()) {
                let [r, g, b] = if first.link > 0 { LINK } else { INK };
                page.begin_text().set_fill_rgb(r, g, b).set_font(Name(name), size);
                page.set_text_matrix([1.0, 0.0, 0.0, 1.0, place, y])
                    .show(Str(&glyphs))
                    .end_text();
                if first.struck {
                    page.rect(place, y + size * 0.27, width, size * 0.06).fill_nonzero();
                }
                let address = first.link.checked_sub(1).and_then(|at| self.addresses.get(at as usize));
                if let Some(address) = address.filter(|address| self.addressed + address.len() <= MAX_ADDRESSES) {
                    self.addressed += address.len() + 100; // what an annotation takes beside its address
                    links.push((
                        Rect::new(place, y - size * 0.25, place + width, y + size),
                        first.link - 1,
                    ));
                }
            }
            place += width;
        }
    }

    /// Sets a short text so that it ends where a line of that frame begins, on the line written last.
    pub(super) fn mark(&mut self, signs: &[Sign], size: f32, indent: f32) {
        let width: f32 = signs.iter().map(|sign| sign.width(size)).sum();
        let y = self.y + size * LEADING * 0.28;
        self.line(signs, size, MARGIN + indent - width - 5.0, y);
    }

    /// Fills a rectangle; `x` is from the margin.
    fn fill(&mut self, [r, g, b]: [f32; 3], x: f32, y: f32, width: f32, height: f32) {
        if let Some((page, _)) = self.pages.last_mut() {
            page.set_fill_rgb(r, g, b)
                .rect(MARGIN + x, y, width, height)
                .fill_nonzero();
        }
    }

    /// Draws a line from side to side at the bottom of what was written last.
    pub(super) fn rule(&mut self, indent: f32, width: f32) {
        self.fill(RULE, indent, self.y, width, 0.7);
    }

    /// One line of a table: its cells side by side. Says nothing of rules.
    pub(super) fn cells(&mut self, cells: &[(f32, &[Sign])], size: f32, bottom: f32) {
        for (x, signs) in cells {
            self.line(signs, size, MARGIN + x, bottom + size * LEADING * 0.28);
        }
    }

    /// The height of a line.
    pub(super) fn height(size: f32) -> f32 {
        size * LEADING
    }

    /// The document, and how many pages it has.
    pub(super) fn finish(mut self, fonts: &mut Fonts, title: &str) -> Result<(Vec<u8>, usize), String> {
        self.number(fonts);
        let mut number = 0;
        let mut next = || {
            number += 1;
            Ref::new(number)
        };
        let mut pdf = Pdf::new();
        let (catalog, tree, info) = (next(), next(), next());
        pdf.catalog(catalog).pages(tree);
        let mut about = pdf.document_info(info);
        about.producer(TextStr("Sluicegate"));
        if !title.is_empty() {
            about.title(TextStr(title));
        }
        about.finish();
        let fonts = fonts.write(&mut pdf, &mut next)?;
        let count = self.pages.len();
        let mut kids = Vec::with_capacity(count);
        for (content, links) in self.pages {
            let (place, stream) = (next(), next());
            kids.push(place);
            let links: Vec<_> = links.into_iter().map(|(area, link)| (next(), area, link)).collect();
            let mut page = pdf.page(place);
            page.media_box(Rect::new(0.0, 0.0, WIDTH, HEIGHT))
                .parent(tree)
                .contents(stream);
            page.annotations(links.iter().map(|(place, ..)| *place));
            let mut resources = page.resources();
            let mut names = resources.fonts();
            for (name, place) in &fonts {
                names.pair(Name(name), *place);
            }
            names.finish();
            resources.finish();
            page.finish();
            for (place, area, link) in links {
                let address = self.addresses.get(link as usize).map_or("", String::as_str);
                let mut annotation = pdf.annotation(place);
                annotation
                    .subtype(AnnotationType::Link)
                    .rect(area)
                    .border(0.0, 0.0, 0.0, None);
                annotation
                    .action()
                    .action_type(ActionType::Uri)
                    .uri(Str(address.as_bytes()));
            }
            let packed = pack(content.finish().as_slice());
            pdf.stream(stream, &packed).filter(Filter::FlateDecode);
        }
        pdf.pages(tree)
            .count(i32::try_from(count).unwrap_or(i32::MAX))
            .kids(kids);
        Ok((pdf.finish(), count))
    }

    /// Puts the pages' numbers on them, if there is more than one.
    fn number(&mut self, fonts: &mut Fonts) {
        let count = self.pages.len();
        if count < 2 {
            return;
        }
        for (at, (page, _)) in self.pages.iter_mut().enumerate() {
            let text = format!("{} / {count}", at + 1);
            let letters: Vec<Letter> = text.chars().filter_map(|c| fonts.letter(Style::Regular, c)).collect();
            let width: f32 = letters.iter().map(|letter| letter.width * 8.0).sum();
            let glyphs: Vec<u8> = letters.iter().flat_map(|letter| letter.glyph.to_be_bytes()).collect();
            let [r, g, b] = FAINT;
            page.begin_text().set_fill_rgb(r, g, b).set_font(Name(NAMES[0]), 8.0);
            page.set_text_matrix([1.0, 0.0, 0.0, 1.0, (WIDTH - width) / 2.0, MARGIN * 0.55]);
            page.show(Str(&glyphs)).end_text();
        }
    }
}

/// Bytes, compressed as PDF has it.
pub(super) fn pack(bytes: &[u8]) -> Vec<u8> {
    miniz_oxide::deflate::compress_to_vec_zlib(bytes, 6)
}

/// A text in lines of at most that width: broken at spaces, and inside of words that are longer than a line.
pub(super) fn lines(signs: &[Sign], size: f32, width: f32) -> Vec<&[Sign]> {
    let mut all = Vec::new();
    let (mut start, mut space, mut used, mut at) = (0, None, 0.0, 0);
    while let Some(sign) = signs.get(at) {
        if sign.letter.is_none() {
            all.push(&signs[start..at]);
            (start, space, used) = (at + 1, None, 0.0);
        } else if used + sign.width(size) > width && !sign.space && at > start {
            let end = space.map_or(at, |space| space + 1);
            all.push(trimmed(&signs[start..end]));
            (start, space) = (end, None);
            used = signs[start..=at].iter().map(|sign| sign.width(size)).sum();
        } else {
            if sign.space {
                space = Some(at);
            }
            used += sign.width(size);
        }
        at += 1;
    }
    if start < signs.len() {
        all.push(trimmed(&signs[start..]));
    }
    all
}

/// Without the spaces at its end, which would stand beyond the margin.
fn trimmed(signs: &[Sign]) -> &[Sign] {
    let end = signs.iter().rposition(|sign| !sign.space).map_or(0, |last| last + 1);
    &signs[..end]
}
