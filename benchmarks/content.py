"""The word lists of the content filter: what they find in labelled lines, and how fast they look.

The lines were written for this file, before anything was measured on them, one sentence each. The harmful ones are
turned by 13 letters, so that nobody has to read them by accident; half of them swear, half do without.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

from beam_jobs import word_lists
from benchmarks.measure import Measure

_HARMFUL = """
    Lbh ner n jbeguyrff cvrpr bs fuvg naq rirelbar urer ungrf lbh.
    Fuhg gur shpx hc be V jvyy pbzr bire naq znxr lbh.
    Jung n shpxvat vqvbg, tb penjy onpx vagb lbhe ubyr.
    Fur vf abguvat ohg n svygul juber naq n fyhg.
    Fhpx zl qvpx, lbh cngurgvp ybfre.
    Tb shpx lbhefrys naq lbhe jubyr snzvyl.
    Gung zbgureshpxre qrfreirf gb or orngra hagvy ur pnaabg jnyx.
    V jnag gb frr ure anxrq naq ba ure xarrf jvgu zl pbpx va ure zbhgu.
    Fghcvq ovgpu, abobql jvyy rire ybir lbh.
    Ur vf na nffubyr naq uvf jvsr vf n phag.
    Trg lbhe gvgf bhg, lbh qvegl yvggyr genzc.
    Gurfr onfgneqf fubhyq nyy or fubg va gur fgerrg.
    Lbh ergneq, qvq lbhe zbgure qebc lbh ba lbhe urnq?
    Ohyyfuvg, lbh ylvat fnpx bs penc, V ubcr lbh pubxr.
    V wrexrq bss nyy bire ure cvpgher naq frag vg gb ure.
    Ybbx ng gung qhzonff, gbb fghcvq gb oerngur.
    Fraq zr ahqrf be V jvyy gryy rirelbar jung lbh qvq, fyhg.
    Lbh ner n tbqqnza zbeba naq n qvpxurnq.
    Cvff bss onpx gb jurer lbh pnzr sebz, fphz.
    Jung n ohapu bs jnaxref naq nefrubyrf gurl nyy ner.
    Xvyy lbhefrys, gur jbeyq jbhyq or orggre jvgubhg lbh.
    Crbcyr yvxr lbh fubhyq abg or nyybjrq gb yvir va bhe pbhagel.
    V xabj jurer lbhe puvyqera tb gb fpubby. Or pnershy.
    Gurl ner irezva, naq irezva zhfg or rkgrezvangrq.
    Jbzra ner gbb fghcvq gb ibgr naq orybat va gur xvgpura.
    Vs lbh gryy nalbar, V jvyy phg lbhe guebng juvyr lbh fyrrc.
    Uvf xvaq ner nyy guvrirf naq pevzvanyf ol oybbq.
    Zvk gurfr gjb ubhfrubyq pyrnaref va n pybfrq ebbz naq ur jvyy abg jnxr hc.
    Gur bayl tbbq barf bs gurz ner gur qrnq barf.
    Jr fubhyq ohea gurve ubhfrf qbja jvgu gurz vafvqr.
    Lbh ner fb sng naq htyl gung lbhe cneragf zhfg or nfunzrq.
    V jvyy svaq bhg jurer lbh yvir naq gura lbh jvyy or fbeel.
    Abobql jbhyq zvff lbh vs lbh whzcrq bss gung oevqtr.
    Gung eryvtvba vf n qvfrnfr naq vgf sbyybjref ner navznyf.
    Fgneir lbhefrys sbe guerr jrrxf, gura znlor fbzrbar jvyy ybbx ng lbh.
    Ure ntr qbrf abg znggre, fur ybbxrq tebja hc naq fur jnagrq vg.
    Lbhe crbcyr jrer znqr gb or fynirf naq nyjnlf jvyy or.
    Orng lbhe jvsr abj naq gura, vg xrrcf ure borqvrag.
    Gur pnzcf jrer gur orfg guvat gung rire unccrarq gb guvf pbagvarag.
    Phg n yvggyr qrrcre arkg gvzr naq vg jvyy nyy or bire.
"""
_BENIGN = """
    The cock crowed at dawn and woke the whole farm.
    A female dog is called a bitch by breeders.
    He rode an ass into the village, as the old story tells.
    Scunthorpe is a town in the north of England.
    Great tits and blue tits visit the garden in winter.
    The doctor examined his rectum and his prostate.
    Breast cancer and cervical cancer are screened for every few years.
    The study asked about sexual health and contraception.
    The tailor took the shirt in at the breast and the waist.
    Dick Turpin was a highwayman in the eighteenth century.
    The vacuum cleaner sucks up dust very well.
    That exam was hard, this sucks, but tomorrow is another day.
    Moby Dick is a novel about a whale hunt.
    William the Bastard became king of England in 1066.
    The slave trade was abolished after a long struggle.
    Sodium sulfate and sodium nitrate dissolve in water.
    The heroine of the opera dies in the last act.
    She took a shot at the basket and missed.
    The vagina and the uterus are parts of the body.
    They analysed the assets and the liabilities of the firm.
    Penistone is a market town in Yorkshire.
    Kill the process with the given number and start it again.
    Photographers shoot weddings all over the country.
    A blue-footed booby dives for fish.
    The shuttlecock flew over the net.
    The class passed the assessment with distinction.
    Press the button to execute the program.
    He was hooked on crosswords for years.
    The dike and the dam held the water back.
    Strip the wire and screw it into the socket.
    The nude is an old subject in painting and sculpture.
    Genital herpes is caused by a virus.
    The hooker stands in the middle of the scrum.
    She won the butterfly and the breaststroke.
    My niece was a bit horrid at tea, but we laughed.
    Crap, I forgot my umbrella again.
    The pussy willow blooms early in spring.
    This damn printer never works on Mondays.
    Cockpit and cocktail are words with an odd history.
    Rape is a plant with yellow flowers that gives oil.
    The film shows how the victims of the war were treated.
    Turn the knob until it clicks.
    Sex of the animal: male; age: three years.
    The Weisswurst is eaten before noon, with sweet mustard.
    Fuchsia and fuchsine were named after Leonhart Fuchs.
    Bloody Mary was a queen and is now a drink.
    The match was a draw, so both captains were unhappy.
    A bomb from the last war was found and taken away.
    His essay on hatred and tolerance won a prize.
    Dumb waiters carry dishes between the floors.
    The Virgin Islands lie east of Puerto Rico.
    She was high on the mountain when the storm came.
    The coach told the team to attack on the left.
    Blow on the soup, it is hot.
    Gay marriage became law in that year.
    He works as a hangman in a puppet show.
    The lesbian poet Sappho lived on Lesbos.
    Nipples of grease guns need to be cleaned.
    A cup of tea and a crumpet, please.
    My grandmother keeps chickens, two cocks and a goose.
"""
NUM_SWEARING = 20  # of the harmful lines, the first
LISTS = ("ldnoobw", "cuss")


def harmful_lines() -> list[str]:
    """The harmful lines, readable."""
    return [codecs.decode(line.strip(), "rot13") for line in _HARMFUL.strip().splitlines()]


def benign_lines() -> list[str]:
    """Lines that mean no harm, though most have a word that a list may know."""
    return [line.strip() for line in _BENIGN.strip().splitlines()]


def found(lines: list[str], names: tuple[str, ...] = LISTS) -> list[bool]:
    """Which of the lines have a word of the lists."""
    lists = [word_lists.load(name) for name in names]
    return [any(each.find(word_lists.words_of(line)) for each in lists) for line in lines]


def measures() -> Iterator[Measure]:
    """`content.words`: text looked through, beside one regular expression of all words."""
    lists = [word_lists.load(name) for name in LISTS]
    words = sorted({word for each in lists for word in each.words})
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})\b")
    text = " ".join(benign_lines()) * 20
    yield Measure(
        name="content.words",
        unit="MB/s",
        amount=len(text.encode()) / 1e6,
        ours=lambda: [each.find(word_lists.words_of(text)) for each in lists],
        peer=lambda: pattern.findall(text.lower()),
        peer_name="one regular expression",
    )
