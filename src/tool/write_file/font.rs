//! The letters: DejaVu, compiled in, of which a PDF gets those that it uses.
//!
//! Letters are set one after the other, from left to right. What that would set wrongly (Hebrew, Arabic, scripts of India)
//! counts as missing although the font has some of it, and so do Chinese, Japanese, Korean and coloured pictures.

use std::collections::{BTreeMap, HashMap};

use pdf_writer::{
    Filter, Finish, Name, Pdf, Rect, Ref, Str,
    types::{CidFontType, FontFlags, SystemInfo, UnicodeCmap},
};
use subsetter::GlyphRemapper;
use ttf_parser::{Face, GlyphId};

/// What stands for a character that no font has.
const REPLACEMENT: char = '\u{FFFD}';
const IDENTITY: SystemInfo<'static> = SystemInfo {
    registry: Str(b"Adobe"),
    ordering: Str(b"Identity"),
    supplement: 0,
};
/// The names by which pages call the fonts, in the order of [`Style`].
pub(super) const NAMES: [&[u8]; 5] = [b"R", b"B", b"I", b"Z", b"M"];

/// How letters look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Style {
    Regular,
    Bold,
    Oblique,
    BoldOblique,
    Mono,
}

/// A letter as it is drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Letter {
    /// Which of the fonts.
    pub(super) font: u8,
    /// Its number in the PDF's font.
    pub(super) glyph: u16,
    /// How wide it is, as a share of the size.
    pub(super) width: f32,
}

/// One font, and what of it is used.
struct Used {
    data: &'static [u8],
    face: Face<'static>,
    name: &'static str,
    glyphs: GlyphRemapper,
    /// By the number in the PDF: the character and the width.
    letters: BTreeMap<u16, (char, f32)>,
}

/// The fonts of a document.
pub(super) struct Fonts {
    fonts: Vec<Used>,
    known: HashMap<(Style, char), Option<Letter>>,
    /// How many characters could not be shown.
    pub(super) missing: usize,
}

impl Fonts {
    /// All of them, with nothing used.
    pub(super) fn new() -> Result<Self, String> {
        let all = [
            ("SLGATE+DejaVuSans", dejavu::sans::regular()),
            ("SLGATE+DejaVuSans-Bold", dejavu::sans::bold()),
            ("SLGATE+DejaVuSans-Oblique", dejavu::sans::oblique()),
            ("SLGATE+DejaVuSans-BoldOblique", dejavu::sans::bold_oblique()),
            ("SLGATE+DejaVuSansMono", dejavu::sans_mono::regular()),
        ];
        let fonts = all.into_iter().map(|(name, data)| {
            Ok(Used {
                data,
                face: Face::parse(data, 0).map_err(|error| error.to_string())?,
                name,
                glyphs: GlyphRemapper::new(),
                letters: BTreeMap::new(),
            })
        });
        Ok(Self {
            fonts: fonts.collect::<Result<_, String>>()?,
            known: HashMap::new(),
            missing: 0,
        })
    }

    /// The letter of a character; nothing for one that is not seen.
    pub(super) fn letter(&mut self, style: Style, c: char) -> Option<Letter> {
        if c.is_control()
            || matches!(c, '\u{AD}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{206F}' | '\u{FE00}'..='\u{FE0F}' | '\u{FEFF}')
        {
            return None;
        }
        let found = match self.known.get(&(style, c)) {
            Some(found) => *found,
            None => {
                let found = self.find(style, c);
                self.known.insert((style, c), found);
                found
            }
        };
        if found.is_none() {
            self.missing += 1;
            return (c != REPLACEMENT).then(|| self.find(style, REPLACEMENT)).flatten();
        }
        found
    }

    fn find(&mut self, style: Style, c: char) -> Option<Letter> {
        if matches!(c, '\u{590}'..='\u{DFF}' | '\u{FB1D}'..='\u{FDFF}' | '\u{FE70}'..='\u{FEFE}') {
            return None;
        }
        // The upright font has more characters than the others.
        [style as usize, Style::Regular as usize].into_iter().find_map(|at| {
            let font = self.fonts.get_mut(at)?;
            let GlyphId(original) = font.face.glyph_index(c)?;
            let width =
                f32::from(font.face.glyph_hor_advance(GlyphId(original))?) / f32::from(font.face.units_per_em());
            let glyph = font.glyphs.remap(original);
            font.letters.entry(glyph).or_insert((c, width));
            Some(Letter {
                font: u8::try_from(at).ok()?,
                glyph,
                width,
            })
        })
    }

    /// Writes the fonts that are used, and gives their places by [`NAMES`].
    pub(super) fn write(
        &self,
        pdf: &mut Pdf,
        mut next: impl FnMut() -> Ref,
    ) -> Result<Vec<(&'static [u8], Ref)>, String> {
        let mut places = Vec::new();
        for (used, name) in self
            .fonts
            .iter()
            .zip(NAMES)
            .filter(|(used, _)| !used.letters.is_empty())
        {
            let place = next();
            used.write(pdf, place, &mut next)?;
            places.push((name, place));
        }
        Ok(places)
    }
}

impl Used {
    fn write(&self, pdf: &mut Pdf, place: Ref, next: &mut impl FnMut() -> Ref) -> Result<(), String> {
        let (cid, descriptor, cmap, file) = (next(), next(), next(), next());
        let base = Name(self.name.as_bytes());
        pdf.type0_font(place)
            .base_font(base)
            .encoding_predefined(Name(b"Identity-H"))
            .descendant_font(cid)
            .to_unicode(cmap);
        let mut font = pdf.cid_font(cid);
        font.subtype(CidFontType::Type2)
            .base_font(base)
            .system_info(IDENTITY)
            .font_descriptor(descriptor)
            .default_width(0.0)
            .cid_to_gid_map_predefined(Name(b"Identity"));
        let mut widths = font.widths();
        for (glyph, (_, width)) in &self.letters {
            widths.same(*glyph, *glyph, width * 1000.0);
        }
        widths.finish();
        font.finish();

        let scale = 1000.0 / f32::from(self.face.units_per_em());
        let of = |value: i16| f32::from(value) * scale;
        let area = self.face.global_bounding_box();
        let mut flags = FontFlags::SYMBOLIC;
        flags.set(FontFlags::ITALIC, self.face.is_italic() || self.face.is_oblique());
        flags.set(FontFlags::FIXED_PITCH, self.face.is_monospaced());
        pdf.font_descriptor(descriptor)
            .name(base)
            .flags(flags)
            .bbox(Rect::new(
                of(area.x_min),
                of(area.y_min),
                of(area.x_max),
                of(area.y_max),
            ))
            .italic_angle(self.face.italic_angle())
            .ascent(of(self.face.ascender()))
            .descent(of(self.face.descender()))
            .cap_height(of(self.face.capital_height().unwrap_or(self.face.ascender())))
            .stem_v(80.0)
            .font_file2(file);

        let mut unicode = UnicodeCmap::new(Name(b"Custom"), IDENTITY);
        for (glyph, (c, _)) in &self.letters {
            unicode.pair(*glyph, *c);
        }
        let unicode = unicode.finish();
        pdf.cmap(cmap, unicode.as_slice());
        let subset = subsetter::subset(self.data, 0, &self.glyphs).map_err(|error| error.to_string())?;
        let packed = super::page::pack(&subset);
        pdf.stream(file, &packed)
            .filter(Filter::FlateDecode)
            .pair(Name(b"Length1"), i32::try_from(subset.len()).unwrap_or(i32::MAX));
        Ok(())
    }
}
