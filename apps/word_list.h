/* word_list.h - common English adjectives and nouns, for the made-up texts of eval.
 *
 * Words are separated by one space, sorted, and no word is in both lists: a text that draws from both never draws a word twice.  Changing a list changes the texts
 * that a seed stands for. */
#ifndef SPW_APP_WORD_LIST_H
#define SPW_APP_WORD_LIST_H

#define WORD_LIST_ADJECTIVES \
    "able absent abstract abundant active actual acute adept aerial ageless agile airy ajar alert alien alive amazing amber ample " \
    "amused ancient angry animated annual anxious apt arctic ardent arid aromatic ashen asleep astute athletic attentive austere " \
    "authentic autumnal avid awake aware awkward azure balanced bald balmy bare barren basic beaming bearded beautiful beige belated " \
    "beloved beneficial bent better big binding bitter black blank blazing bleak blessed blind blissful blond bloomy blue blunt blurry " \
    "boastful bogus bold bookish bored bossy bottomless bouncy boundless brainy brave breezy brief bright brilliant brisk brittle " \
    "broad broken bronze brown bubbly bulky bumpy burly bushy busy buttery buzzing calm candid capable careful careless caring casual " \
    "cautious central certain charming charred chatty cheap cheeky cheerful cheery chief chilly chubby circular civic civil classic " \
    "clean clear clever close cloudy clumsy coarse coastal cold colorful colossal comfy common compact complete complex composed " \
    "concrete confident constant content cool cooperative copper coral cordial correct cosmic costly courteous cozy crafty cranky " \
    "crazy creamy creative crimson crisp crooked crowded crucial crude cruel crunchy curious curly current curved cute cyan cyclic " \
    "daily dainty damp dapper daring dark dashing dazzling dear decent decisive deep defiant definite delicate delicious delighted " \
    "dense dependable desert detailed devoted digital diligent dim diplomatic direct dirty discreet distant distinct diverse divine " \
    "dizzy docile domestic dormant double doubtful dramatic dreamy dry dual dull durable dusky dusty dutiful dynamic eager early " \
    "earnest earthy eastern easy eclectic ecstatic edible educated eerie efficient elaborate elastic elated elder elderly electric " \
    "elegant elementary eligible elite eloquent elusive eminent empty enchanted endless energetic enormous entire envious equal " \
    "essential eternal ethical even evergreen everyday exact excellent exotic expert explicit exquisite extra fabulous factual faded " \
    "faint fair faithful familiar famous fancy fantastic far fast favorable fearless feathery feisty fertile festive fickle fierce " \
    "fiery final fine firm fiscal fit fixed flaky flashy flat flawless flexible flimsy floral fluent fluffy fluid fond foolish foreign " \
    "formal forthright fortunate fragile fragrant frank free frequent fresh friendly frigid frilly frosty frozen frugal fruitful full " \
    "functional funny furry fussy futuristic fuzzy gallant garnet generous genial gentle genuine giant giddy gifted gigantic glad " \
    "glamorous gleaming glistening global gloomy glorious glossy glowing golden good gorgeous graceful gracious gradual grand granite " \
    "grateful grave gray great greedy green gregarious grim grizzled groovy grouchy growing grumpy guarded gullible gusty gutsy hairy " \
    "handmade handsome handy happy hardy harmless harmonious harsh hasty hazel hazy healthy hearty heavenly heavy helpful heroic " \
    "hidden high hilarious historic hollow holy homely honest honorable hopeful horizontal hospitable hot huge humble humid humming " \
    "humorous hungry hurried hushed husky icy ideal identical idle immense impartial important impressive incredible indigo indoor " \
    "industrial infinite informal innate inner innocent inquisitive insightful intact intense interesting internal intrepid inventive " \
    "invisible inviting iron ironic ivory jade jagged jaunty jazzy jolly jovial joyful joyous jubilant judicious juicy jumbo junior " \
    "just juvenile keen kind kindly kingly knotty knowing known labored lacy lame languid large last late lavender lavish lawful lazy " \
    "leafy lean learned left legal legendary lemony lenient level likable likely lilac limber limited limp linear liquid literate " \
    "little lively local lofty logical lone lonely long loose lopsided loud lovable lovely low loyal lucid lucky luminous lunar lush " \
    "luxurious lyrical magenta magic magnetic magnificent majestic major mammoth marble marine maroon massive matte mature meager " \
    "mealy measly measured meaty mechanical medical medium meek mellow melodic memorable mental merciful merry messy metallic mighty " \
    "mild milky mindful miniature minor mint minty misty mixed mobile modern modest moist monthly moral mossy motley muddy muffled " \
    "mundane muscular mushy musical musty mute muted mysterious mythical naive narrow nasal native natural nautical naval neat nervous " \
    "neutral new nice nifty nimble noble nocturnal noisy nomadic normal northern nosy notable noted novel numb nutty oaken oblong " \
    "obscure observant oceanic odd olive opal open opportune optimal optimistic opulent orange orderly ordinary organic original " \
    "ornate outer outgoing outlandish outrageous outstanding oval overdue overt pale parallel passive pastel patient patriotic " \
    "peaceful peachy pearly peculiar peppery perfect periodic perky perpetual petite physical piercing pink placid plain playful " \
    "pleasant plucky plump plush poetic pointed poised polar polished polite popular portable positive possible potent powerful " \
    "practical precious precise premium present pretty previous pricey prickly primal prime pristine private prodigious productive " \
    "profound prominent prompt proper prosperous proud prudent public puffy punctual pure purple puzzled quaint quarterly queasy quick " \
    "quiet quirky quixotic radiant radical rainy rapid rare rash raspy rational raw ready real realistic recent reckless red refined " \
    "reflective regal regular relaxed reliable reluctant remarkable remote resilient resolute resonant respectful responsive restless " \
    "retired rich right rigid ripe roasted robust rocky romantic roomy rosy rotund rough round rowdy royal rubbery ruby rugged runic " \
    "rural rustic rusty sable sacred safe saffron salty sandy sane sapphire sarcastic sassy satin savvy scaly scarce scarlet scenic " \
    "scholarly scientific scornful seasonal secluded secret secure sedate selective sensible sensitive separate sepia serene serious " \
    "shadowy shady shaggy shallow sharp sheepish sheer shiny short shy silent silken silky silly silver similar simple sincere skilled " \
    "skillful sleek sleepy slender slick slight slim slippery slow sly small smart smiling smoky smooth snappy sneaky snowy snug " \
    "soaring sociable soft solar solemn solid solitary somber sonic sour southern spacious spare sparkling sparse special spectacular " \
    "speedy spicy spiffy spirited splendid spotless spotted sprightly springy square stable staid stark starry stately static " \
    "steadfast steady steep sticky stiff still stoic stormy stout straight strange strict striking striped strong studious sturdy " \
    "stylish suave sublime subtle succinct sudden sugary suitable sunny super superb superior supple supreme sure surreal swampy sweet " \
    "swift sympathetic tactful talented talkative tall tame tan tangible tangy tart tasteful tasty teal tearful tedious temperate " \
    "tender tense tepid terse thankful thick thin thirsty thorny thorough thoughtful thrifty thrilled thriving tidal tidy timely timid " \
    "tiny tired tiresome topaz total tough towering tranquil transparent tricky trim tropical true trusty truthful turbulent turquoise " \
    "twin typical ultimate umber unbiased uncommon unified uniform unique united universal unlikely untold upbeat upper upright urban " \
    "urgent usable useful usual utter vacant vague valiant valid valuable vapid varied vast velvet velvety verbal verdant versatile " \
    "vertical vibrant vicarious victorious vigilant vigorous vintage violet virtual visible vital vivacious vivid vocal volatile " \
    "voluminous wacky warm wary watchful watery wavy waxy wealthy weary weekly weighty weird welcome western wet whimsical whispering " \
    "white whole wholesome wicked wide wiggly wild willing windy winged wintry wiry wise wispy wistful witty wonderful wooden woolen " \
    "woozy wordy worldly worthy wry yearly yellow young youthful yummy zany zealous zesty zigzag"

#define WORD_LIST_NOUNS \
    "abacus accordion acorn acre actor address adventure afternoon agenda agent agreement airplane airport alarm album alley alligator " \
    "almanac almond alphabet altar ambulance anchor angle ankle answer ant antelope antenna antique anvil apartment apple apricot " \
    "apron aquarium arcade arch archer arena armchair armor arrow artist ash asteroid athlete atlas atom attic audience aunt author " \
    "autumn avenue avocado award axe axle baby backpack bacon badge badger bag bagel bakery balcony ball ballad balloon bamboo banana " \
    "bandage banjo bank banner barber bark barn barrel basement basil basin basket bat bath battery bay beach bead beak beam bean bear " \
    "beard beast beaver bed bedroom bee beetle beggar bell belt bench berry bicycle bill bird biscuit bishop bison blade blanket " \
    "blizzard blossom blouse blueberry board boat bobcat body bolt bone bonfire bonnet book bookcase boot border bottle boulder " \
    "boundary bouquet bow bowl box boy bracelet braid brain branch brass bread breakfast breeze brick bride bridge broccoli brook " \
    "broom brother brush bubble bucket buckle bud buffalo bugle builder building bulb bull bullet bundle bunker bus bush butcher " \
    "butter butterfly button buyer cab cabbage cabin cabinet cable cactus cafe cage cake calendar calf camel camera camp canal canary " \
    "candle candy cane cannon canoe canvas canyon cap cape captain car caramel caravan card cardigan cargo carnival carpenter carpet " \
    "carriage carrot cart cashew castle cat catalog catfish cathedral cave cedar ceiling celery cellar cello cement center cereal " \
    "chain chair chalk chamber champion channel chapel chapter chariot chart cheek cheese cheetah chef cherry chess chest chestnut " \
    "chicken chimney chin chip chocolate choir cider cinema cinnamon circle circus citizen city clarinet class claw clay cliff climate " \
    "cloak clock cloth cloud clover clown club coach coal coast coat cobbler cobra coconut coffee coin collar college colony column " \
    "comb comedy comet compass computer concert condor cone cook cookie corn corner corridor costume cottage cotton couch cougar " \
    "country county courtyard cousin cow cowboy coyote crab cradle crane crater crayon creek crew cricket crocodile crop cross crow " \
    "crowd crown crumb crystal cub cube cucumber cup cupboard curb curtain cushion customer cyclist cymbal cypress daffodil dagger " \
    "dairy daisy dam dancer dandelion date daughter dawn day deck deer deli den dentist deputy desk dessert detective dew diagram dial " \
    "diamond diary dice dictionary dime diner dinner dinosaur dish disk ditch diver dock doctor dog doll dolphin dome donkey door " \
    "dough dove dragon dragonfly drain drawer drawing dream dress drill driver drum duchess duck duet duke dune dust dwarf eagle ear " \
    "earring earth easel echo eclipse editor eel egg elbow election elephant elevator elf elk ember emerald emperor engine engineer " \
    "envelope era eraser essay estate evening exhibit eyebrow fable fabric face factory fairy falcon family fan farm farmer fawn feast " \
    "feather fence fern ferret ferry fiddle field fig figure film finch finger fir fire firefly fireplace fish fisherman flag flame " \
    "flamingo flannel flask flea fleet flight flock flood floor flour flower flute fly foal fog folder folk foot football forehead " \
    "forest fork fort fortress fossil fountain fox frame freckle freezer freight friend frog frost fruit fudge funnel furnace " \
    "furniture gadget galaxy gallery gallon game garage garden gardener gargoyle garlic gate gazelle gear gecko gem general geyser " \
    "ghost gift ginger giraffe girl glacier glass globe glove glue gnome goat goblet goblin goldfish golf gondola goose gorilla gourd " \
    "gown grain grammar grandfather grandmother grape grass grasshopper gravel gravity groom grove guard guest guide guitar gull gym " \
    "gymnast hail hair hallway ham hammer hammock hamster hand handle hangar harbor hare harp harvest hat hawk hay heart hearth heater " \
    "hedge hedgehog heel helicopter helmet hen herb herd hermit heron hiker hill hinge hippo hive hockey holiday home honey hood hoof " \
    "hook horizon horn hornet horse hose hospital hotel hound hour house humor hunter hurdle hurricane husband hut hyena hymn ice " \
    "iceberg igloo iguana illusion infant ink inn insect instrument invention inventor invoice iris island item ivy jacket jaguar jam " \
    "janitor jar jasmine jaw jay jeans jelly jellyfish jester jet jewel jockey joke journal journey judge juggler juice jungle juniper " \
    "juror kangaroo kayak keeper kernel kettle key keyboard kid kidney king kingdom kiosk kitchen kite kitten knee knife knight knob " \
    "knot koala label laborer lace ladder lady ladybug lagoon lake lamb lamp land landlord language lantern lark laser latch laundry " \
    "lava law lawn lawyer leaf league leather lecture ledge leg legend lemon lemonade lens leopard lesson letter lettuce lever library " \
    "lid lifeguard light lighthouse lily lime limestone linen lion lip lizard llama loaf lobby lobster lock locket locust log lotus " \
    "luggage lullaby lumber lunch lute lynx lyric machine magician magnet magpie maid mailbox mall mammal manager mango mansion mantle " \
    "manual map maple marathon marigold market marsh mask mason mast mat match mattress mayor maze meadow meal medal melody melon " \
    "memory merchant mermaid meteor microscope midnight milk mill miner minister minnow mirror mission mitten moat model mole " \
    "monastery money monk monkey monster month monument moon moose morning mosaic mosque mosquito moss moth mother motor mountain " \
    "mouse mouth movie mud muffin mug mule muscle museum mushroom music musician mustache mustard mystery nail napkin neck necklace " \
    "nectar needle neighbor nephew nest net nettle newspaper newt nickel niece night nightingale node noodle noon nose notebook " \
    "novelist nurse nut nutmeg nylon oak oar oasis oat object oboe ocean octopus office officer oil ointment omelet onion opera orbit " \
    "orchard orchestra orchid ore organ ornament ostrich otter oven owl owner ox oyster package paddle page pail painter palace palm " \
    "pan pancake panda panther papaya paper paprika parachute parade parcel park parrot parsley parsnip partner passenger pasta paste " \
    "pasture patch path patrol pavement paw pea peach peacock peak peanut pear pearl pebble pecan pedal pelican pen pencil penguin " \
    "penny pepper perfume petal phantom pharmacy pheasant phone photo piano pickle picnic picture pie pier pig pigeon pill pillar " \
    "pillow pilot pine pineapple pint pioneer pipe pirate pistachio pitcher pizza planet plank plant plate platform platter plaza plum " \
    "plumber pocket poem poet polka pollen pond pony pool popcorn poppy porch porcupine porridge port porter portrait postcard poster " \
    "pot potato potter powder prairie prayer priest prince princess printer prism prize professor propeller prune pudding pulley pump " \
    "pumpkin puppet puppy puzzle pyramid python quail quarry quartz queen quest quill quilt quiver quiz rabbit raccoon race radar " \
    "radio radish raft railroad railway rain rainbow raisin rake ram ranch ranger raspberry rat rattle raven ravine ray razor rebel " \
    "receipt recipe record reef referee refrigerator region reindeer relic report reptile rescue restaurant rhinoceros rhubarb rhythm " \
    "ribbon rice riddle rider ring ripple river road robin robot rock rocket rod roof room rooster root rope rose rosemary roster " \
    "rowboat rudder rug ruin ruler runner rust sack saddle safari sage sail sailboat sailor salad salmon salon salt sand sandal " \
    "sandwich sash satellite sauce saucer sausage saw saxophone scale scarecrow scarf scent school scientist scissors scooter scorpion " \
    "scout screen screw script sculptor sea seagull seal season seat seaweed secretary seed senator sentence sergeant servant sesame " \
    "shadow shark shed sheep sheet shelf shell shelter shepherd sheriff shield ship shirt shoe shop shore shoulder shovel shrimp shrub " \
    "sidewalk sign signal silo singer sink siren sister skate sketch ski skirt skull skunk sky slate sled sleeve slide slipper sloth " \
    "smoke snail snake sneaker snow snowflake soap soccer sock sofa soil soldier sonnet soup spaceship spade spaniel spark sparrow " \
    "spear spice spider spinach spiral spire sponge spoon spring spruce spy squash squid squirrel staircase stamp star starfish " \
    "station statue steak steam steel stem step stereo stew stick stone stool store stork storm stove stranger straw strawberry stream " \
    "street string student studio submarine subway sugar suit suitcase summer summit sun sunflower sunrise sunset surfer surgeon " \
    "swallow swamp swan sweater swimmer sword symbol symphony syrup table tadpole tailor tambourine tank tape target tavern taxi tea " \
    "teacher team teapot telescope temple tennis tent terrace theater thief thimble thistle thorn thread throne thumb thunder ticket " \
    "tide tie tiger tile timber tinsel tire toad toast toe toffee tomato tongue tool tooth torch tornado tortoise totem toucan towel " \
    "tower town toy track tractor trail train trampoline tray treasure treaty tree triangle tribe trolley trombone trophy trout truck " \
    "trumpet trunk tub tuba tulip tundra tunnel turkey turnip turtle tutor twig twilight typist ukulele umbrella umpire uncle unicorn " \
    "university urchin usher vacation valley valve vampire van vase vault vegetable vehicle veil vein verse vessel vest veteran vine " \
    "vinegar vineyard viola violin visitor voice volcano vole volleyball voyage vulture wafer wagon waist waiter wall wallet walnut " \
    "walrus waltz wardrobe warehouse warrior wasp water waterfall watermelon wave wax weasel weather weaver web wedding weed well " \
    "whale wharf wheat wheel whip whisker whistle wick widow willow wind windmill window wing winter wire witch witness wizard wolf " \
    "woman wood woodpecker wool word workshop worm wreath wrench wrist writer yacht yak yard yarn year yeast yogurt yolk zebra zebu " \
    "zephyr zipper zither zone zoo"

#endif
