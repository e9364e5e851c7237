"""Made-up students: the pools their fields are drawn from, and their line in a register (PERK section 4.1)."""

from __future__ import annotations

import random
from dataclasses import dataclass

__all__ = ["FIELDS", "FIRST_NAMES", "LAST_NAMES", "Student", "draw_student"]

FIELDS = ("name", "year", "school", "major", "grade")

# fmt: off
FIRST_NAMES = (
    "Aaliyah", "Adam", "Aiko", "Alejandro", "Alice", "Amara", "Amir", "Ana", "Anders", "Andrea", "Anika", "Anton",
    "Arjun", "Astrid", "Ayesha", "Beatriz", "Benjamin", "Bianca", "Boris", "Brandon", "Camila", "Carlos", "Carmen",
    "Caroline", "Cecilia", "Charles", "Chloe", "Christopher", "Clara", "Connor", "Daisuke", "Damian", "Daniela",
    "Darius", "David", "Deepa", "Diana", "Diego", "Dmitri", "Edward", "Elena", "Elias", "Elizabeth", "Emeka", "Emily",
    "Emma", "Erik", "Esther", "Ethan", "Fatima", "Felix", "Fiona", "Francisco", "Freya", "Gabriel", "George", "Grace",
    "Gustavo", "Hannah", "Haruto", "Hassan", "Helena", "Henry", "Hugo", "Ibrahim", "Ingrid", "Isabella", "Ivan",
    "Jack", "Jamal", "James", "Jasmine", "Javier", "Jessica", "Joao", "Jonas", "Julia", "Kaito", "Karim", "Katarina",
    "Kenji", "Kevin", "Kofi", "Lars", "Laura", "Layla", "Leila", "Leo", "Liam", "Lina", "Lucas", "Lucia", "Maja",
    "Manuel", "Marco", "Maria", "Marta", "Mateo", "Matthew", "Maya", "Mei", "Michael", "Mina", "Mohammed", "Nadia",
    "Naomi", "Natalia", "Nicholas", "Nina", "Noah", "Olga", "Oliver", "Olivia", "Omar", "Oscar", "Pablo", "Patricia",
    "Paul", "Pedro", "Peter", "Priya", "Rachel", "Rafael", "Raj", "Rebecca", "Renata", "Robert", "Rosa", "Ryan",
    "Samira", "Samuel", "Sara", "Sebastian", "Simone", "Sofia", "Sven", "Tariq", "Thomas", "Tomas", "Valentina",
    "Victor", "Wei", "William", "Xavier", "Yara", "Yuki", "Yusuf", "Zainab", "Zoe",
)
LAST_NAMES = (
    "Abbott", "Adeyemi", "Ahmed", "Ali", "Alvarez", "Andersen", "Baker", "Bauer", "Becker", "Bennett", "Berg",
    "Bianchi", "Brooks", "Brown", "Campbell", "Carter", "Castillo", "Chang", "Chen", "Chowdhury", "Clark", "Cohen",
    "Collins", "Cooper", "Costa", "Cruz", "Davis", "Diaz", "Dubois", "Edwards", "Evans", "Farah", "Fernandez",
    "Fischer", "Fleming", "Foster", "Fujita", "Garcia", "Gomez", "Gonzalez", "Gray", "Green", "Gupta", "Haddad",
    "Hall", "Hansen", "Harris", "Hayashi", "Hernandez", "Hill", "Hoffmann", "Hughes", "Hussain", "Ivanova", "Jackson",
    "Jansen", "Jensen", "Johnson", "Jones", "Kapoor", "Kelly", "Khan", "Kim", "Klein", "Kowalski", "Kumar", "Lange",
    "Larsen", "Lee", "Lewis", "Lindberg", "Lopez", "Mahmoud", "Martin", "Martinez", "Mendes", "Meyer", "Miller",
    "Mitchell", "Moore", "Morales", "Mori", "Morris", "Müller", "Murphy", "Nakamura", "Nelson", "Nguyen", "Nielsen",
    "Novak", "Okafor", "Oliveira", "Olsen", "Ortiz", "Osei", "Park", "Parker", "Patel", "Perez", "Petrov", "Popescu",
    "Price", "Ramirez", "Reed", "Reyes", "Rivera", "Roberts", "Robinson", "Rossi", "Russell", "Sanchez", "Santos",
    "Sato", "Schmidt", "Schneider", "Sharma", "Silva", "Singh", "Smith", "Sokolov", "Stewart", "Suzuki", "Tanaka",
    "Taylor", "Thompson", "Torres", "Turner", "Usman", "Vargas", "Vasquez", "Walker", "Wang", "Watanabe", "Weber",
    "White", "Williams", "Wilson", "Wong", "Wright", "Yamamoto", "Yang", "Young", "Zhang", "Zimmermann",
)
_YEARS = ("Freshman", "Sophomore", "Junior", "Senior")
# Schools are drawn as often from these as made of a kind and a field.
_SCHOOLS = (
    "School of Engineering", "School of Business", "School of Law", "School of Medicine", "School of Education",
    "School of Arts", "School of Sciences", "School of Humanities", "School of Public Health",
    "School of Social Sciences", "School of Nursing", "School of Architecture", "School of Music",
    "School of Information", "School of Agriculture", "School of Journalism", "College of Liberal Arts",
    "College of Natural Sciences", "Graduate School of Management", "Institute of Technology",
)
_MAJORS = (
    "Accounting", "Anthropology", "Architecture", "Art History", "Astronomy", "Biochemistry", "Biology",
    "Business Administration", "Chemical Engineering", "Chemistry", "Civil Engineering", "Communications",
    "Computer Science", "Dance", "Data Science", "Economics", "Electrical Engineering", "English Literature",
    "Environmental Science", "Film Studies", "Finance", "Geography", "Geology", "Graphic Design", "History",
    "International Relations", "Journalism", "Linguistics", "Marketing", "Mathematics", "Mechanical Engineering",
    "Music", "Neuroscience", "Nursing", "Philosophy", "Physics", "Political Science", "Psychology", "Sociology",
    "Spanish", "Statistics", "Theater",
)
_SCHOOL_KINDS = ("School of", "College of", "Faculty of", "Institute of", "Department of", "Academy of")
# Majors are drawn as often from the list above as made of one of these and a field, or of a field alone.
_BRANCHES = (
    "Applied", "Classical", "Clinical", "Comparative", "Computational", "Creative", "Digital", "Experimental",
    "Global", "Industrial", "Marine", "Mathematical", "Medieval", "Modern", "Molecular", "Quantitative", "Rural",
    "Social", "Sustainable", "Theoretical", "Urban", "Veterinary",
)
_FIELDS_OF_STUDY = (
    "Acoustics", "Advertising", "Aerospace Engineering", "African Studies", "Agronomy", "Animal Science",
    "Archaeology", "Arts", "Asian Studies", "Astrophysics", "Biology", "Biophysics", "Botany", "Broadcasting",
    "Business", "Ceramics", "Chemistry", "Choreography", "Cinematography", "Classics", "Composition", "Computing",
    "Conservation", "Counseling", "Criminology", "Dentistry", "Design", "Dietetics", "Drama", "Ecology", "Education",
    "Energy", "Engineering", "Entomology", "Epidemiology", "Ethics", "Fashion", "Fine Arts", "Fisheries",
    "Food Science", "Forestry", "Forensics", "French", "Gastronomy", "Gender Studies", "Genetics", "German",
    "Gerontology", "Health", "Horticulture", "Hospitality", "Human Resources", "Hydrology", "Immunology", "Insurance",
    "Italian", "Japanese", "Jazz", "Kinesiology", "Landscape Design", "Law", "Library Science", "Literature",
    "Logistics", "Management", "Materials Science", "Medicine", "Metallurgy", "Meteorology", "Microbiology", "Mining",
    "Museum Studies", "Nanotechnology", "Nutrition", "Oceanography", "Optics", "Optometry", "Painting",
    "Paleontology", "Pathology", "Pharmacy", "Photography", "Physiology", "Planning", "Poetry", "Policy",
    "Printmaking", "Public Relations", "Radiology", "Real Estate", "Religion", "Robotics", "Sculpture", "Seismology",
    "Social Work", "Software Engineering", "Studio Art", "Surveying", "Taxation", "Theology", "Tourism", "Toxicology",
    "Translation", "Transport", "Viticulture", "Welding", "Zoology",
)
# What invented names are made of: an onset and a vowel a syllable, and perhaps a coda at the end.
_ONSETS = (
    "b", "bl", "br", "c", "ch", "cl", "d", "dr", "f", "fr", "g", "gr", "h", "j", "k", "kr", "l", "m", "n", "p", "ph",
    "pr", "qu", "r", "s", "sh", "sk", "st", "t", "th", "tr", "v", "w", "wh", "y", "z",
)
_VOWELS = ("a", "a", "ai", "au", "e", "e", "ea", "ee", "ei", "i", "i", "ie", "o", "o", "oo", "ou", "u", "y")
_CODAS = (
    "", "", "ck", "d", "ff", "ger", "l", "ld", "ll", "ller", "man", "n", "nd", "ne", "nez", "ng", "nson", "nt", "r",
    "rd", "rt", "s", "sen", "sky", "ss", "ston", "t", "th", "tte", "ton", "vic", "well", "wood", "x", "za",
)
# Share of the first and last names, each for itself, that no pool holds: names of real registers come from everywhere.
_INVENTED = 0.35
_COMPOSED = 0.5
# fmt: on


@dataclass(frozen=True)
class Student:
    """One record.

    Attributes:
        number: identity number of seven digits.
        name: first and last name.
        year: of study.
        school: of the university.
        major: subject.
        grade: 0 to 100.
    """

    number: int
    name: str
    year: str
    school: str
    major: str
    grade: int

    def line(self) -> str:
        """The record as it stands in a register."""
        return (
            f"Student <{self.number}>, Name: {self.name}, Year: {self.year}, School: {self.school}, "
            f"Major: {self.major}, Grade: {self.grade}"
        )


def draw_student(rng: random.Random, number: int) -> Student:
    """A student of random fields under an identity number."""
    return Student(
        number=number,
        name=f"{_name(rng, FIRST_NAMES)} {_name(rng, LAST_NAMES)}",
        year=rng.choice(_YEARS),
        school=_school(rng),
        major=_major(rng),
        grade=rng.randrange(0, 101),
    )


def _name(rng: random.Random, pool: tuple[str, ...]) -> str:
    if rng.random() >= _INVENTED:
        return rng.choice(pool)
    syllables = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((1, 2, 2, 3))))
    return (syllables + rng.choice(_CODAS)).capitalize()


def _school(rng: random.Random) -> str:
    if rng.random() >= _COMPOSED:
        return rng.choice(_SCHOOLS)
    return f"{rng.choice(_SCHOOL_KINDS)} {rng.choice((*_FIELDS_OF_STUDY, *_MAJORS))}"


def _major(rng: random.Random) -> str:
    if rng.random() >= _COMPOSED:
        return rng.choice(_MAJORS)
    field = rng.choice(_FIELDS_OF_STUDY)
    return field if rng.random() < 0.5 else f"{rng.choice(_BRANCHES)} {field}"
