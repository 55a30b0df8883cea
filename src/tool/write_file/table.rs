//! Tables of a Markdown text: how wide their columns are, and their rows set over as many pages as they need.

use pulldown_cmark::Alignment;

use super::{
    font::Style,
    markdown::{SIZE, SMALL, Writer},
    page::{Frame, Paper, ROOM, Sign, lines},
};

/// How many columns a table can have side by side; one with more is set as text.
const MAX_COLUMNS: usize = 12;
/// How many lines a head can have that is repeated on every page.
const MAX_HEAD: usize = 3;
/// The distance between two columns.
const GUTTER: f32 = 10.0;

/// A table as it is read: rows of cells.
pub(super) type Rows = Vec<Vec<Vec<Sign>>>;

impl Writer {
    /// Sets a table, its head on every page anew.
    pub(super) fn set(&mut self, rows: &Rows) -> Result<(), String> {
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
